"""``train.py`` with a stop watch in each of its stages: ``python -m speed.startup_parts OUT KEY=VALUE ...``.

Ends at the first optimizer step. torch and the like are imported before the command line is read, so that their time
is told apart; a run does the same later.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STAGES = {  # of kd.run, as they are called there
    "build": "read the rows", "student_rows": "tokens of the rows", "make_teacher": "teacher, load",
    "score_teacher": "teacher, scores", "make_student": "student", "teach": "teacher's signals",
}  # fmt: skip


def born() -> float:
    """When this process began, by the clock of ``time.time``; Linux tells."""
    ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - (float(Path("/proc/uptime").read_text().split()[0]) - ticks)


def watched(function: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        begin = time.time()
        try:
            return function(*args, **named)
        finally:
            spent[name] = spent.get(name, 0.0) + time.time() - begin

    return call


def main() -> None:
    out, sys.argv = Path(sys.argv[1]), ["train.py", *sys.argv[2:]]
    begin = born()
    spent: dict[str, float] = {}
    marks = [("interpreter", begin, time.time())]
    launch = importlib.import_module("kd.launch")
    marks.append(("import hydra and kd's checks", marks[-1][2], time.time()))
    importlib.import_module("kd.noise").silence()
    run = importlib.import_module("kd.run")
    marks.append(("import torch, transformers, lightning", marks[-1][2], time.time()))
    missing = [stage for stage in STAGES if not hasattr(run, stage)]
    for stage in missing:
        print(f"LEFT OUT: kd.run has no {stage}: it counts as 'the rest'", flush=True)
    for stage in [stage for stage in STAGES if stage not in missing]:
        setattr(run, stage, watched(getattr(run, stage), STAGES[stage], spent))
    entered: list[float] = []
    real = run.train

    def train(cfg: Any) -> Any:
        entered.append(time.time())
        return real(cfg)

    setattr(run, "train", train)  # noqa: B010 (a module, for mypy)
    from speed.clock import Clock, Enough

    clock = Clock(1)
    with contextlib.suppress(Enough, SystemExit):
        launch.main()
    assert clock.ticks, "the run ended before its first step"
    end = time.time() - (time.perf_counter() - clock.ticks[0])  # not what an interrupted trainer does then
    parts = {name: stop - start for name, start, stop in marks}
    parts["compose and check the command line"] = entered[0] - marks[-1][2]
    parts |= spent
    parts["the rest: trainer, first batch, first step"] = end - begin - sum(parts.values())
    out.write_text(json.dumps({"parts": parts, "total": end - begin}))
    os._exit(0)  # as it is: there is nothing to end well


if __name__ == "__main__":
    main()
