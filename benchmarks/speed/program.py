"""What a process of one of the programs does around its training: it reads the work, and writes what was measured."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from speed.clock import Clock, Enough, peak_megabytes
from speed.objective import probe, read_models
from speed.work import Work, load

Train = Callable[[Work, dict[str, Any], Any, Any, Clock], None]


def main(train: Train) -> None:
    """``python -m speed.NAME WORK OUT --last N --setting JSON``; 0 steps: the whole training."""
    parser = argparse.ArgumentParser(description=train.__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--last", type=int, default=0)
    parser.add_argument("--setting", type=json.loads, default={})
    parser.add_argument("--each-epoch", action="store_true", help="probe the student after every epoch, too")
    arguments = parser.parse_args()
    work = load(arguments.work)
    torch.set_num_threads(work.threads)
    torch.manual_seed(work.seed)
    teacher, student = read_models(work)
    clock = Clock(arguments.last)
    epochs: list[dict[str, float]] = []
    a_epoch = work.steps // work.epochs
    if arguments.each_epoch:
        clock.watchers.append(lambda step: None if step % a_epoch else epochs.append(probe(work, student, teacher)))
    with contextlib.suppress(Enough):
        train(work, arguments.setting, teacher, student, clock)
    end, megabytes = time.perf_counter(), peak_megabytes()
    measured = {
        "begin": clock.begin, "ticks": clock.ticks, "end": end, "megabytes": megabytes,
        "probe": probe(work, student, teacher), "epochs": epochs,
    }  # fmt: skip
    arguments.out.write_text(json.dumps(measured))
