"""Zip files that mean no good."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path

import pytest

from kd.library.archive import unpack
from kd.library.download import RefusedError

MOST = 1 << 20


def refused(archive: Path, match: str, most: int = MOST) -> None:
    """Nothing is written outside, and what was begun inside is in the directory to be deleted."""
    place = archive.parent / "inside" / "here"
    with pytest.raises(RefusedError, match=match):
        unpack(archive, place, most)
    assert {path.name for path in archive.parent.iterdir()} == {archive.name, "inside"}
    assert sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) <= most
    shutil.rmtree(place)


def zipped(tmp_path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, content in entries:
            archive.writestr(entry, content)
    return path


def test_directories_are_kept(tmp_path: Path) -> None:
    unpack(zipped(tmp_path, ("a/b.txt", b"one"), ("c.txt", b"two")), tmp_path / "out", MOST)
    assert (tmp_path / "out" / "a" / "b.txt").read_bytes() == b"one"
    assert (tmp_path / "out" / "c.txt").read_bytes() == b"two"


@pytest.mark.parametrize("name", ["../out.txt", "a/../../out.txt", "/tmp/out.txt", "a\\..\\out.txt", "C:out.txt"])
def test_paths_that_lead_out(tmp_path: Path, name: str) -> None:
    refused(zipped(tmp_path, ("good.txt", b"x"), (name, b"x")), "outside of its directory")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices(tmp_path: Path, kind: int) -> None:
    entry = zipfile.ZipInfo("link")
    entry.external_attr = (kind | 0o777) << 16
    refused(zipped(tmp_path, (entry, b"/etc/passwd")), "a link or a device in it: link")


def test_a_bomb_of_100_gb(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", b"0")
        archive.infolist()[0].file_size = 100 << 30  # as its directory says, and as it would unpack
    assert path.stat().st_size < 1000
    refused(path, "would unpack to 107,374,182,400 bytes, and 1,048,576 at most")


def test_a_bomb_that_lies(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(10 * MOST))
        archive.infolist()[0].file_size = 10
    assert path.stat().st_size < 20_000
    refused(path, "no whole zip file")


def test_many_small_files_that_are_large_together(tmp_path: Path) -> None:
    refused(zipped(tmp_path, *((f"{i}", bytes(MOST // 2)) for i in range(3))), "would unpack to 1,572,864 bytes")
    refused(zipped(tmp_path, *((f"{i}", b"") for i in range(1001))), "has 1001 files")


def test_one_name_twice(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        path = zipped(tmp_path, ("a", b"1"), ("a", b"2"))
    refused(path, "2 files, 1 of different names")


def test_what_is_no_zip(tmp_path: Path) -> None:
    whole = zipped(tmp_path, ("a", b"1" * 5000)).read_bytes()
    (tmp_path / "a.zip").write_bytes(whole[:-30])
    refused(tmp_path / "a.zip", "no whole zip file")
    changed = bytearray(whole)
    changed[40] ^= 1
    (tmp_path / "a.zip").write_bytes(changed)
    refused(tmp_path / "a.zip", "no whole zip file")
