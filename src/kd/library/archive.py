"""A zip file that a stranger made, unpacked: no path outside, no links, and no more bytes than expected."""

from __future__ import annotations

import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from kd.library.download import RefusedError

MOST_FILES = 1000
CHUNK = 1 << 20


def unpack(archive: Path, directory: Path, most: int) -> None:
    """Writes the files of a zip below ``directory``, which is made. Raises RefusedError for anything odd about it.

    ``most``: bytes of all files together. What the archive says of itself is checked first, and what really comes out
    of it while it is written.
    """
    directory.mkdir(parents=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            check_entries(archive, entries, most)
            for entry in entries:
                most -= extract(opened, entry, directory, most)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise RefusedError(f"{archive.name} is no whole zip file ({error})") from error


def check_entries(archive: Path, entries: list[zipfile.ZipInfo], most: int) -> None:
    names = [entry.filename for entry in entries]
    if len(names) > MOST_FILES or len({*names}) < len(names):
        raise RefusedError(f"{archive.name} has {len(names)} files, {len({*names})} of different names")
    for entry in entries:
        path, kind = PurePosixPath(entry.filename), stat.S_IFMT(entry.external_attr >> 16)
        if path.is_absolute() or ".." in path.parts or "\\" in entry.filename or ":" in entry.filename:
            raise RefusedError(f"{archive.name} would write outside of its directory: {entry.filename}")
        if kind not in (0, stat.S_IFREG):
            raise RefusedError(f"{archive.name} has a link or a device in it: {entry.filename}")
    total = sum(entry.file_size for entry in entries)
    if total > most:
        raise RefusedError(f"{archive.name} would unpack to {total:,} bytes, and {most:,} at most are expected")


def extract(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, directory: Path, most: int) -> int:
    """Writes one file; how many bytes it has."""
    path, size = directory / entry.filename, 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with opened.open(entry) as source, path.open("xb") as file:
        while chunk := source.read(CHUNK):
            size += len(chunk)
            if size > most:
                raise RefusedError(f"{entry.filename} unpacks to more bytes than the archive says")
            file.write(chunk)
    return size
