"""Memory and time of a stretch of work in this process."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

STATUS = Path("/proc/self/status")


@dataclass
class Cost:
    """``peak_bytes`` is how far resident memory rose above where it stood at the beginning."""

    seconds: float = 0.0
    peak_bytes: int = 0


@contextlib.contextmanager
def measured() -> Iterator[Cost]:
    """Fills a Cost at the end of the block."""
    cost, before, start = Cost(), resident_bytes(), time.perf_counter()
    yield cost
    cost.seconds, cost.peak_bytes = time.perf_counter() - start, max(peak_bytes() - before, 0)


def resident_bytes() -> int:
    """What the process has in memory now. The peak counts from here on, where the system lets it begin anew (Linux)."""
    if not STATUS.is_file():
        return peak_bytes()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return in_status("VmRSS")


def peak_bytes() -> int:
    """The most it had."""
    if STATUS.is_file():
        return in_status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_status(name: str) -> int:
    return 1024 * int(STATUS.read_text().partition(f"{name}:")[2].split()[0])
