"""``profile=true``: where a step's time goes, and a trace of some steps for chrome://tracing or Perfetto.

Lightning announces what it does by name; the training step announces its own parts the same way. Parts are timed over
STEPS batches without the trace, whose keeping would count too; the trace is of the TRACED batches after them.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.profilers import Profiler

from kd.store import rank

WARM_UP, STEPS, TRACED = 5, 40, 3
NEXT = ".train_dataloader_next"  # the end of Lightning's name for what begins a batch
NAMES = {  # the parts of a step, by how the names end
    NEXT: "data", "teacher": "teacher", "student": "student forward", "losses": "losses", "logging": "logging",
    ".backward": "backward", "DistillationModule.optimizer_step": "optimizer",
}  # fmt: skip
VALIDATION = "DistillationModule.on_validation_start", "DistillationModule.on_validation_end"
OPTIMIZER = "optimizer"  # its step is what Lightning has around all but the data


class StepProfile(Profiler):
    """Seconds of each part of a step, from the first batch after the warm-up on; ``trace.json`` in ``directory``."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.directory = directory
        self.seconds = dict.fromkeys(NAMES.values(), 0.0)
        self.begun: dict[str, float] = {}
        self.ranges: dict[str, Any] = {}
        self.batch = 0
        self.first = self.last = 0.0
        self.validating = self.validated = 0.0  # since when; and seconds in all, which are no part of a step
        self.trace: Any = None

    @property
    def timing(self) -> bool:
        return WARM_UP < self.batch <= WARM_UP + STEPS

    def start(self, action_name: str) -> None:
        if action_name.endswith(NEXT):
            self.next_batch()
        if self.timing and action_name.endswith(VALIDATION[0]):
            self.validating = now()
        if self.trace is not None:
            self.ranges[action_name] = torch.profiler.record_function(action_name)
            self.ranges[action_name].__enter__()
        if self.timing and part_of(action_name):
            self.begun[action_name] = now()

    def stop(self, action_name: str) -> None:
        if action_name in self.ranges:
            self.ranges.pop(action_name).__exit__(None, None, None)
        if self.timing and action_name.endswith(VALIDATION[1]):
            self.validated += now() - self.validating
        if action_name in self.begun:
            part, taken = str(part_of(action_name)), now() - self.begun.pop(action_name)
            self.seconds[part] += taken
            if part != OPTIMIZER and any(part_of(name) == OPTIMIZER for name in self.begun):
                self.seconds[OPTIMIZER] -= taken  # it happens within

    def next_batch(self) -> None:
        if self.timing:
            self.last = now()
        self.batch += 1
        if self.batch == WARM_UP + 1:
            self.first = self.last = now()
        elif self.batch == WARM_UP + STEPS + 1:
            activities = [torch.profiler.ProfilerActivity.CPU]
            activities += [torch.profiler.ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self.trace = torch.profiler.profile(activities=activities)
            self.trace.__enter__()
        elif self.batch == WARM_UP + STEPS + TRACED + 1:
            self.end_trace()

    def end_trace(self) -> None:
        if self.trace is None:
            return
        for opened in reversed(self.ranges.values()):
            opened.__exit__(None, None, None)
        self.ranges.clear()
        self.trace.__exit__(None, None, None)
        if rank() == 0:  # one file for all
            self.trace.export_chrome_trace(str(self.directory / "trace.json"))
        self.trace = None

    def teardown(self, stage: str | None) -> None:
        self.end_trace()  # of a training that was shorter

    def summary(self) -> str:
        return ""  # Lightning would print it; described() goes into the report

    def parts(self) -> dict[str, float]:
        """Seconds of a batch by part, ``other`` being Lightning's own and the callbacks'; none if it was too short."""
        count = min(self.batch - 1, WARM_UP + STEPS) - WARM_UP
        if count <= 0:
            return {}
        found = {name: seconds / count for name, seconds in self.seconds.items()}
        found["other"] = max(0.0, (self.last - self.first - self.validated) / count - sum(found.values()))
        return found


def part_of(name: str) -> str | None:
    return next((part for end, part in NAMES.items() if name.endswith(end)), None)


def now() -> float:
    """Seconds, when all that an accelerator was asked for is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def described(parts: dict[str, float]) -> str:
    """A table in markdown."""
    whole = sum(parts.values())
    lines = [f"| {name} | {seconds * 1e3:.2f} | {seconds / whole:.1%} |" for name, seconds in parts.items()]
    return "\n".join(["| part of a step | ms | share |", "| --- | ---: | ---: |", *lines])
