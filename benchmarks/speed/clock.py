"""Notes when each optimizer step ended, whoever makes it, and ends a training that is measured on a part."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


class Enough(Exception):
    """As many steps were made as are measured."""


class Clock:
    """Seconds of ``time.perf_counter`` at each step's end; raises Enough after ``last`` of them, 0 for never."""

    def __init__(self, last: int = 0) -> None:
        self.last = last
        self.begin = time.perf_counter()
        self.ticks: list[float] = []
        self.watchers: list[Callable[[int], None]] = []
        self.depth = 0  # torch tells of a step once more where one optimizer's step calls that of its base class
        self.hooks = [register_optimizer_step_pre_hook(self.enter), register_optimizer_step_post_hook(self.tick)]

    def start(self) -> None:
        """Called when the training begins: models and rows are loaded."""
        self.begin = time.perf_counter()

    def enter(self, *_: Any) -> None:
        self.depth += 1

    def tick(self, *_: Any) -> None:
        self.depth -= 1
        if self.depth:
            return
        self.ticks.append(time.perf_counter())
        for watch in self.watchers:
            watch(len(self.ticks))
        if len(self.ticks) == self.last:
            raise Enough


def peak_megabytes() -> float:
    """The largest resident size of this process so far, pages of mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
