"""What this machine has, and what was measured of it: kept, so that all runs and all ranks of a run decide alike."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

from kd.store import content_key, locked, write_text


def processor() -> str:
    """The model of the CPU, in words."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def abilities() -> str:
    """What instructions the CPU has: virtual machines of different chips may have one name."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.lower().startswith(("flags", "features"))), ""
    )


def compiler() -> str | None:
    """The C++ compiler that torch would call."""
    return next(
        (name for name in (os.environ.get("CXX"), "g++", "clang++", "c++") if name and shutil.which(name)), None
    )


def once(cache: Path, what: str, measure: Callable[[], dict[str, float]], **circumstances: object) -> dict[str, float]:
    """What ``measure`` found under these ``circumstances`` when it was first asked on a machine of this kind."""
    key = content_key(processor=processor(), abilities=abilities(), **circumstances)
    path = cache / "machine" / f"{what}-{key}.json"
    with locked(path):
        if path.is_file():
            found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
            return found
        found = measure()
        write_text(path, json.dumps(found))
        return found
