"""What kd notes of what is in the store: ``source.json`` beside its files, ``checksums.json`` of all downloads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kd.errors import UserError
from kd.store import SOURCE, file_hash, locked, source_of, write_text

CHECKSUMS = "checksums.json"  # in the store: what was seen at the first download, by where it came from
LOCKS = ".locks"


def files(directory: Path) -> dict[str, dict[str, Any]]:
    """Bytes and sha256 of every file, by its path in the directory."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != SOURCE)
    return {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": file_hash(path)}
        for path in paths
    }


def write(directory: Path, about: dict[str, Any]) -> None:
    """Notes ``about`` and the files as they are now."""
    record = {**about, "files": files(directory)}
    write_text(directory / SOURCE, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def differing(directory: Path) -> list[str]:
    """What is no longer as noted, a phrase for each file; empty also where nothing was noted."""
    found = []
    for name, noted in source_of(directory).get("files", {}).items():
        path = directory / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != noted["bytes"]:
            found.append(f"{name} has {path.stat().st_size:,} bytes, noted were {noted['bytes']:,}")
        elif file_hash(path) != noted["sha256"]:
            found.append(f"{name} has another sha256 than the one noted")
    return found


def checksums(store: Path) -> dict[str, str]:
    """The sha256 of everything ever downloaded into the store, by its place at the source."""
    path = store / CHECKSUMS
    if not path.is_file():
        return {}
    try:
        found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is broken ({error}): mend it, or delete it to record the sums anew.") from error
    return found


def note_checksums(store: Path, new: dict[str, str]) -> None:
    with locked(store / LOCKS / "checksums"):
        merged = dict(sorted((checksums(store) | new).items()))
        write_text(store / CHECKSUMS, json.dumps(merged, indent=1) + "\n")
