"""The directory of an export: what stands in export.json, and whether its files are what it says."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kd.errors import UserError
from kd.store import file_hash, write_text

FORMAT_VERSION = 1
ABOUT = "export.json"
FAILED = ".failed"
KEYS = {"passed": bool, "target": dict, "files": dict, "model_files": list, "reasons": list, "figures": dict}
AGAIN = "Export it again: kd export --model RUN/student --to"


def is_export(directory: Path) -> bool:
    return (directory / ABOUT).is_file()


def files_of(directory: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Checksum and size of each file."""
    return {
        name: {"sha256": file_hash(directory / name), "bytes": (directory / name).stat().st_size}
        for name in sorted(names)
    }


def write_about(directory: Path, about: Mapping[str, Any]) -> None:
    write_text(directory / ABOUT, json.dumps({"format_version": FORMAT_VERSION, **about}, indent=2))


def note_figures(directory: Path, figures: Mapping[str, Any]) -> None:
    """Adds what was measured later, such as latency, to export.json."""
    about = read_about(directory)
    write_about(directory, about | {"figures": about["figures"] | dict(figures)})


def read_about(directory: Path) -> dict[str, Any]:
    """export.json. Raises UserError if it is broken or of a newer kd."""
    path = directory / ABOUT
    if not path.is_file():
        raise UserError(f"{directory} is no export that kd wrote: there is no {ABOUT}.")
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = int(about["format_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is broken ({error}). {AGAIN} NAME") from error
    if version > FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version}, and this kd reads up to {FORMAT_VERSION}: it was written by a newer "
            "kd. Update kd, or export the model again with this one."
        )
    if wrong := broken(about):
        raise UserError(f"{path} is broken ({wrong}). {AGAIN} NAME")
    return about


def broken(about: Mapping[str, Any]) -> str | None:
    """What export.json lacks of what is read from it; None if it is all there."""
    for key, kind in KEYS.items():
        if not isinstance(about.get(key), kind):
            return f"{key} is missing or not what it should be"
    if not all(isinstance(about["target"].get(key), str) for key in ("name", "runtime")):
        return "target has no name and runtime"
    for name, known in about["files"].items():
        if not plain(name):
            return f"{name!r} in files is no plain file name"
        if not (isinstance(known, dict) and {"sha256", "bytes"} <= known.keys()):
            return f"files has no sha256 and bytes of {name}"
    ending = "" if about["passed"] else FAILED
    unknown = [name for name in about["model_files"] if f"{name}{ending}" not in about["files"]]
    if unknown or not about["model_files"]:
        return f"files has no checksum of {unknown or 'any model file'}"
    return None


def plain(name: str) -> bool:
    """Within the directory: no other place, on any system."""
    return name not in ("", ".", "..") and not set(name) & set("/\\:\0")


def opened_about(directory: Path) -> dict[str, Any]:
    """export.json of an export that may be used. Raises UserError for a failed, incomplete or changed one."""
    about = read_about(directory)
    if not about["passed"]:
        raise UserError(
            f"{directory} did not pass its gate and is not used: {'; '.join(about['reasons'])}. Its file is kept as "
            f"{', '.join(name + FAILED for name in about['model_files'])} to be looked at."
        )
    check_files(directory, about)
    return about


def check_files(directory: Path, about: Mapping[str, Any]) -> None:
    for name, known in about["files"].items():
        path = directory / name
        if not path.is_file():
            raise UserError(f"{directory}: {name} is missing. {AGAIN} {about['target']['name']}")
        size = path.stat().st_size
        if size != known["bytes"]:
            raise UserError(
                f"{path} has {size} bytes instead of {known['bytes']}: it was cut off or changed since it was written. "
                f"{AGAIN} {about['target']['name']}"
            )
        if file_hash(path) != known["sha256"]:
            raise UserError(
                f"{path} is not what was exported (its sha256 differs from the one in {ABOUT}): it was changed or "
                f"damaged. {AGAIN} {about['target']['name']}"
            )
