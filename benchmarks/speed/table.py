"""Ratios of rounds, their spread, and how they are printed and kept."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kd.table import markdown_table
from speed.measure import Measured


@dataclass(frozen=True)
class Ratio:
    """The median over rounds, and the smallest and the largest."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f}–{self.high:.2f})"


def ratio(slower: Sequence[float], faster: Sequence[float]) -> Ratio:
    """Of seconds, round by round: what went on beside a round slowed both, and leaves their ratio.

    Raises ValueError unless both have the same number of rounds.
    """
    each = [one / other for one, other in zip(slower, faster, strict=True)]
    return Ratio(statistics.median(each), min(each), max(each))


def rotated(names: Sequence[str], round_number: int) -> list[str]:
    """Another order in every round, so that nobody always comes first."""
    turn = round_number % len(names)
    return [*names[turn:], *names[:turn]]


Rounds = Mapping[str, Sequence[Measured]]


def middle(rounds: Sequence[Measured], name: str) -> float:
    return float(statistics.median(getattr(one, name) for one in rounds))


def table(rounds: Rounds, rows: int, than: str) -> str:
    """Programs from slowest to fastest, against ``than``; ``rows`` are those of a whole training, all epochs."""
    header = [
        "program", "seconds", "rows/s", f"{than} is faster by", "ms a step", "whole process", "peak MB",
        "loss @ steps", "accuracy",
    ]  # fmt: skip
    lines = []
    for name, all_of_it in sorted(rounds.items(), key=lambda item: -middle(item[1], "seconds")):
        seconds = middle(all_of_it, "seconds")
        times = ratio([one.seconds for one in all_of_it], [one.seconds for one in rounds[than]])
        learned = all_of_it[-1].probe
        probed = [f"{learned['loss']:.3f}", f"{learned['accuracy']:.3f}"] if learned else ["–", "–"]
        lines.append(
            [
                name, f"{seconds:.1f}", f"{rows / seconds:.0f}", "–" if name == than else str(times),
                f"{1000 * middle(all_of_it, 'step'):.1f}", f"{middle(all_of_it, 'wall'):.1f}",
                f"{middle(all_of_it, 'megabytes'):.0f}", f"{probed[0]} @{all_of_it[-1].steps_run}", probed[1],
            ]
        )  # fmt: skip
    return markdown_table(header, lines)


def machine() -> dict[str, Any]:
    """Where and when it was measured, and how busy the machine was then."""
    import torch

    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    name = next((line.split(":")[1].strip() for line in flags.splitlines() if line.startswith("model name")), "")
    return {
        "processor": name or platform.processor(), "cores": os.cpu_count(),
        "bf16": [flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags], "torch": torch.__version__,
        "load": os.getloadavg(), "date": time.strftime("%Y-%m-%d %H:%M"),
    }  # fmt: skip


def describe(about: Mapping[str, Any]) -> str:
    return (
        f"{about['processor']}, {about['cores']} cores, {', '.join(about['bf16']) or 'no bf16'}, "
        f"torch {about['torch']}, load {about['load'][0]:.1f} when it began, {about['date']}"
    )


def keep(out: Path, found: Mapping[str, Any]) -> None:
    """As JSON; ``Measured`` and ``Ratio`` as dictionaries."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=2, default=asdict))
    print(f"kept in {out}", flush=True)
