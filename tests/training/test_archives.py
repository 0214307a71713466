"""Files out of packages and Qt's bundles, made here."""

from pathlib import Path

import pytest
from helpers.archives import bundle, write_archive

from live2diff.training import archives
from live2diff.training.archives import unpack, unpack_bundle

FILES = {"a/README": b"words " * 100, "a/b/dam.webp": b"\x00\x01", "top.txt": b""}


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_bundle_gives_its_files_by_path(version: int, compressed: bool):
    assert unpack_bundle(bundle(FILES, version, compressed)) == FILES


def test_a_file_that_is_no_bundle_is_refused():
    with pytest.raises(ValueError, match="not a Qt resource bundle"):
        unpack_bundle(b"PNG " + bytes(40))


@pytest.mark.parametrize("name", ["some.deb", "some.whl", "some.tgz"])
def test_only_the_files_that_match_are_read(tmp_path: Path, name: str):
    path = write_archive(tmp_path / name, FILES)
    assert unpack(path, ".*/README|top.*") == {file: FILES[file] for file in ("a/README", "top.txt")}


@pytest.mark.parametrize("name", ["some.deb", "some.whl", "some.tgz"])
def test_a_large_file_is_refused_before_it_is_read(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    path = write_archive(tmp_path / name, FILES)
    monkeypatch.setattr(archives, "LARGEST_FILE", 599)
    assert unpack(path, "top.*") == {"top.txt": b""}
    with pytest.raises(ValueError, match=r"a/README has 600 bytes; the limit is 599\."):
        unpack(path, ".*")


def test_a_compressed_file_in_a_bundle_ends_at_the_limit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(archives, "LARGEST_FILE", 599)
    assert len(unpack_bundle(bundle(FILES, 2, compressed=True))["a/README"]) == 599


def test_a_debian_package_without_files_is_refused(tmp_path: Path):
    path = tmp_path / "empty.deb"
    path.write_bytes(b"!<arch>\n")
    with pytest.raises(ValueError, match=r"no data\.tar"):
        unpack(path, ".*")
