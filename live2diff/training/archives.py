"""Read files from packages of Debian, Python and npm and from Qt resource bundles, in memory."""

import io
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

LARGEST_FILE = 1 << 26  # bytes, unpacked


def tar_of_deb(data: bytes) -> bytes:
    """Return the tar archive of a Debian package's files."""
    start = len(b"!<arch>\n")
    while start < len(data):
        name, size = data[start : start + 16], int(data[start + 48 : start + 58])
        start += 60
        if name.startswith(b"data.tar"):
            return data[start : start + size]
        start += size + size % 2
    raise ValueError("The Debian package has no data.tar.")


def matching(entries: list[tuple[str, int, Any]], pattern: str) -> Iterator[tuple[str, Any]]:
    """Yield name and entry of those (name, bytes, entry) whose name matches; ValueError for a large one."""
    for name, size, entry in entries:
        if re.fullmatch(pattern, name):
            if size > LARGEST_FILE:
                raise ValueError(f"{name} has {size} bytes; the limit is {LARGEST_FILE}.")
            yield name, entry


def unpack(path: Path, pattern: str) -> dict[str, bytes]:
    """Return the files of a .deb, .whl or .tgz whose paths match; ValueError for one over `LARGEST_FILE`."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as file:
            entries = [(entry.filename, entry.file_size, entry) for entry in file.infolist()]
            return {name: file.read(entry) for name, entry in matching(entries, pattern)}
    data = path.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(tar_of_deb(data) if path.suffix == ".deb" else data)) as file:
        entries = [(entry.name.removeprefix("./"), entry.size, entry) for entry in file if entry.isfile()]
        streams = [(name, file.extractfile(entry)) for name, entry in matching(entries, pattern)]
        return {name: stream.read() for name, stream in streams if stream}


def unpack_bundle(data: bytes) -> dict[str, bytes]:
    """Return the files of a Qt resource bundle (.rcc) by path; ValueError if it is none."""
    magic, version, nodes, contents, names = struct.unpack_from(">4s4I", data)
    if magic != b"qres":
        raise ValueError("This is not a Qt resource bundle.")
    node_size = 14 if version < 2 else 22  # from version 2 on with the time of the last change
    files = {}
    pending = [(0, PurePosixPath())]
    while pending:
        node, folder = pending.pop()
        name, flags, count, first = struct.unpack_from(">IHII", data, nodes + node * node_size)
        if node:  # the root has no name
            (length,) = struct.unpack_from(">H", data, names + name)
            start = names + name + 6  # after the length and a hash
            folder /= data[start : start + 2 * length].decode("utf-16-be")
        if flags & 2:  # a folder: its children follow each other
            pending += [(child, folder) for child in range(first, first + count)]
            continue
        start = contents + first
        (length,) = struct.unpack_from(">I", data, start)
        content = data[start + 4 : start + 4 + length]
        if flags & 1:  # zlib, after the unpacked size
            content = zlib.decompressobj().decompress(content[4:], LARGEST_FILE)
        files[str(folder)] = content
    return files
