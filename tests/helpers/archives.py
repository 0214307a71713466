"""Packages and Qt resource bundles with given files."""

import io
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath


def bundle(files: dict[str, bytes], version: int = 2, compressed: bool = False) -> bytes:
    """Return a Qt resource bundle (.rcc): header, contents, names, and nodes level by level."""
    folders = {parent for file in files for parent in PurePosixPath(file).parents}
    paths = sorted(
        folders | {PurePosixPath(file) for file in files}, key=lambda path: (len(path.parts), path)
    )
    names, contents, nodes = b"", b"", b""
    for path in paths:
        name = struct.pack(">IH", len(names), 2 if path in folders else int(compressed))
        names += struct.pack(">HI", len(path.name), 0) + path.name.encode("utf-16-be")
        if path in folders:
            children = [child for child in paths if child.parent == path and child != path]
            nodes += name + struct.pack(">II", len(children), paths.index(children[0]))
        else:
            nodes += name + struct.pack(">HHI", 0, 1, len(contents))
            data = files[str(path)]
            data = struct.pack(">I", len(data)) + zlib.compress(data) if compressed else data
            contents += struct.pack(">I", len(data)) + data
        nodes += bytes(8 if version > 1 else 0)
    start = 20 if version < 3 else 24
    places = [start + len(contents) + len(names), start, start + len(contents)]
    return struct.pack(">4s4I", b"qres", version, *places) + bytes(start - 20) + contents + names + nodes


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    """Write a .deb, .whl or .tgz with these files and return its path."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
            for name, data in files.items():
                wheel.writestr(name, data)
        return path
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz" if path.suffix == ".deb" else "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    if path.suffix == ".tgz":
        path.write_bytes(buffer.getvalue())
        return path
    parts = {b"debian-binary": b"2.0\n", b"control.tar.xz": b"odd", b"data.tar.xz": buffer.getvalue()}
    lines = [
        name.ljust(48) + str(len(data)).encode().ljust(10) + b"`\n" + data + b"\n" * (len(data) % 2)
        for name, data in parts.items()
    ]
    path.write_bytes(b"!<arch>\n" + b"".join(lines))
    return path
