"""Photographs with their licences out of packages made here; nothing is fetched."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.archives import bundle, write_archive

from live2diff.training.fetch import fetch, licence_name, save_photographs, write_credits

PACKAGE = {"version": "1", "file": "some_1.deb", "prefix": "some", "left_out": ["some-b-drawing"]}


def image(width: int = 320, height: int = 240, extension: str = ".webp") -> bytes:
    return cv2.imencode(extension, np.full((height, width, 3), 90, np.uint8))[1].tobytes()


def saved(tmp_path: Path, files: dict[str, bytes], **package) -> dict[str, tuple[str, ...]]:
    """Return author, licence and source of each picture that is taken; a file is written for each."""
    path = write_archive(tmp_path / "some_1.deb", files)
    folder = tmp_path / "photographs"
    folder.mkdir()
    rows = list(save_photographs("some", PACKAGE | package, path, folder))
    assert sorted(file.relative_to(tmp_path) for file in tmp_path.rglob("*.*") if file != path) == sorted(
        Path("photographs", row[0]) for row in rows
    )
    assert all(row[1:3] == ("some", "1") for row in rows)
    return {row[0]: row[3:] for row in rows}


def test_licences_in_the_readmes_of_a_bundle_are_read(tmp_path: Path):
    readme = """Copyright: László Szalai\nSource: https://some.where/File:A_1.jpg
License: Public Domain\nFiles:
dam 1.webp
x/dam2.webp

Copyright: B\nLicense: CC-BY-SA 3.0\nFiles: shared.webp

Copyright: C\nLicense: CC-BY 2.0\nComments: cropped\nFiles: ../../free.webp small.webp drawing.webp odd.webp
"""
    names = ("a/x/dam2", "a/shared", "a/small", "a/drawing", "a/unnamed", "a/../../free", "a/even")
    files = {f"{name}.webp": image(320, 199 if "small" in name else 240) for name in names}
    data = bundle({"a/README": readme.encode(), **files})
    settings = {"credits": "readme", "pictures": r".*/b\.rcc", "misspelt": {"odd.webp": "even.webp"}}
    assert saved(tmp_path, {"usr/b.rcc": data, "usr/c.rcc": b"not read"}, **settings) == {
        "some-b-dam2.jpg": ("László Szalai", "public domain", "https://some.where/File:A_1.jpg"),
        "some-b-free.jpg": ("C", "CC BY 2.0", ""),
        "some-b-even.jpg": ("C", "CC BY 2.0", ""),
    }


def test_licences_in_the_copyright_file_of_debian_are_read(tmp_path: Path):
    text = """Files: *\nCopyright: A\nLicense: public-domain

Files: land/*\nCopyright: B\nLicense: public-domain\n Taken from somewhere.

Files: land/*-sfiera*\nCopyright: C\nLicense: CC-BY-SA-4.0

Files:\n land/mountain1*\n land/sea*\nCopyright: Various\nLicense: public-domain\n Taken from unsplash.com.

Files: land/lava?.jpg\nCopyright: D\nLicense: CC-BY-4.0
"""
    names = ("mountain1", "mountain1@2x", "mountain10", "mountain11-sfiera", "sea-sfiera", "lava3", "other")
    files = {f"usr/pictures/{name}.jpg": image(extension=".jpg") for name in names}
    settings = {
        "credits": "copyright",
        "pictures": r".*/pictures/.*\.jpg",
        "source_folder": ["usr/pictures/", "land/"],
    }
    assert saved(tmp_path, files | {"usr/doc/copyright": text.encode()}, **settings) == {
        "some-lava3.jpg": ("D", "CC BY 4.0", ""),
        "some-mountain1.jpg": ("Various", "public domain", "unsplash.com"),
        "some-mountain1_2x.jpg": ("Various", "public domain", "unsplash.com"),
    }


def test_a_licence_file_beside_a_picture_is_read_and_large_pictures_are_scaled(tmp_path: Path):
    line = "# SPDX-FileCopyrightText: 2018 Some One <some@one>\n#\n# SPDX-License-Identifier: CC0-1.0\n#\n# https://a.b/c\n"
    files = {f"photos/{name}.png": image(2048, 1000, ".png") for name in ("Air Balloon", "Alone")}
    files["photos/Air Balloon.png.license"] = line.encode()
    settings = {"credits": "license", "pictures": r"photos/.*\.png"}
    expected = {"some-Air_Balloon.jpg": ("Some One", "CC0 1.0", "https://a.b/c")}
    assert saved(tmp_path, files, **settings) == expected
    assert cv2.imread(str(tmp_path / "photographs" / "some-Air_Balloon.jpg")).shape == (500, 1024, 3)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Public Domain", "public domain"),
        ("public-domain\n Taken from", "public domain"),
        ("CC0-1.0", "CC0 1.0"),
        ("CC-BY 2.0", "CC BY 2.0"),
        ("CC-BY-SA-4.0", None),
        ("CC-BY-NC 2.0", None),
        ("CC-BY 2.0 or GPL-2", None),
        ("GPLv3", None),
    ],
)
def test_only_free_licences_without_share_alike_have_a_name(text: str, name: str | None):
    assert licence_name(text) == name


def test_a_package_that_is_there_is_not_fetched_but_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    file = tmp_path / "some_1.deb"
    package = PACKAGE | {"sha256": hashlib.sha256(b"right").hexdigest()}
    with pytest.raises(ValueError, match=rf"apt-get is not installed\. Put some_1\.deb into {tmp_path}"):
        fetch("some", package, tmp_path)
    file.write_bytes(b"right")
    assert fetch("some", package, tmp_path) == file
    file.write_bytes(b"wrong")
    with pytest.raises(ValueError, match=r"is not some 1; remove it"):
        fetch("some", package, tmp_path)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("file", "tool", "request_text"),
    [("some_1.deb", "apt-get", "download some=1"), ("some-1.tgz", "npm", "pack some@1")],
)
def test_name_and_version_are_asked_for(tmp_path: Path, monkeypatch, file: str, tool: str, request_text: str):
    script = tmp_path / tool
    script.write_text(f'#!/bin/sh\necho "$@" > named-otherwise{Path(file).suffix}\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    content = f"{request_text}\n".encode()
    package = {"version": "1", "file": file, "sha256": hashlib.sha256(content).hexdigest()}
    assert fetch("some", package, tmp_path).read_bytes() == content
    script.write_text("#!/bin/sh\necho no such version >&2\nexit 1\n")
    (tmp_path / file).unlink()
    with pytest.raises(ValueError, match=rf"some.1: no such version\s+Put {file} into"):
        fetch("some", package, tmp_path)


def test_only_the_rows_of_fetched_packages_are_replaced(tmp_path: Path):
    card = tmp_path / "card.md"
    kept = "# Title\n\n| a | b |\n|---|---|\n| x | other 1 | A | CC0 1.0 |  |\n"
    card.write_text(kept + "| gone.jpg | some 1 | B | CC0 1.0 | https://a |\n")
    rows = [("new.jpg", "some", "1", "C", "CC BY 2.0", "https://b")]
    for _ in range(2):
        write_credits(rows, card)
        assert card.read_text() == kept + "| new.jpg | some 1 | C | CC BY 2.0 | https://b |\n"
