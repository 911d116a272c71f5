"""``data.batch_size=auto``: the most rows whose forward and backward pass fits, tried on the longest rows.

An accelerator is filled until it refuses. On the CPU, where the system would end the process, a small batch shows what
a row keeps for its backward pass, and all rows may keep a quarter of the memory that is free.
"""

from __future__ import annotations

import copy
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kd.batches import Draw
from kd.datamodule import TextDataModule
from kd.errors import UserError
from kd.halving import is_out_of_memory
from kd.lit_module import FrozenTeacher
from kd.losses import Loss
from kd.signals import Recorder

LEAST, MOST = 8, 256  # rows; more of them would leave an epoch few steps to learn in
STEPS = 20  # an epoch has as many at least
TRIED = 16  # rows, on the CPU
SHARE = (
    0.25  # of the free memory, for what waits for the backward pass: gradients, optimizer and temporaries come on top
)


def find(
    student: Any, losses: dict[str, Loss], teacher: FrozenTeacher | None, rows: TextDataModule, device: torch.device,
    mixed: bool,
) -> tuple[int, str]:  # fmt: skip
    """How many rows, a power of two, and why not more, for people. Raises UserError if not even LEAST fit."""
    longest = np.argsort(-rows.splits["train"].lengths, kind="stable")
    most = MOST
    while most > LEAST and most * STEPS > len(longest):
        most //= 2
    trial = Trial(student, losses, teacher, rows, device, mixed)
    fits = on_cpu(trial, longest) if device.type == "cpu" else on_accelerator(trial, longest)
    size, why = LEAST, f"no more are tried, so that an epoch of {len(longest)} rows has steps to learn in"
    if not fits(size):
        raise UserError(
            f"data.batch_size=auto: not even {LEAST} rows fit into memory. Set student.gradient_checkpointing=true, a "
            "smaller data.max_length, or data.batch_size with trainer.accumulate_grad_batches."
        )
    while size < most:
        if not fits(2 * size):
            why = f"{2 * size} of the longest rows do not fit"
            break
        size *= 2
    return size, why


class Trial:
    """A training step on copies, which leaves nothing behind."""

    def __init__(
        self, student: Any, losses: dict[str, Loss], teacher: FrozenTeacher | None, rows: TextDataModule,
        device: torch.device, mixed: bool,
    ) -> None:  # fmt: skip
        self.losses = {name: copy.deepcopy(loss).to(device) for name, loss in losses.items()}
        self.student = copy.deepcopy(student).to(device).train()
        signals = ("logits", *(s for loss in losses.values() for s in loss.student_signals))
        self.recorder = Recorder(self.student, signals)
        self.teacher, self.rows, self.device, self.mixed = teacher, rows, device, mixed
        if teacher is not None:
            teacher.to(device)

    def kept_bytes(self, drawn: Any) -> int:
        """What the forward pass of these rows leaves for the backward pass, without the weights.

        Counted without gradient checkpointing, so too high with it.
        """
        weights = {tensor.untyped_storage().data_ptr() for tensor in self.student.parameters()}
        sizes: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        self.student.activation_checkpointing_disable()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self(drawn)
        return sum(size for place, size in sizes.items() if place not in weights)

    def __call__(self, drawn: Any) -> None:
        """Forward and backward for these rows."""
        generator = torch.get_rng_state()
        batch = self.rows.splits["train"][Draw(drawn.tolist(), {})]
        moved = {name: to(value, self.device) for name, value in batch.items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            student = self.recorder(**moved["student"])
            teacher = {} if self.teacher is None else self.teacher(moved["teacher"])
        found = [loss(student, teacher, moved)[0] for loss in self.losses.values()]
        torch.autograd.backward(torch.stack(found).sum())
        self.student.zero_grad(set_to_none=True)
        torch.set_rng_state(generator)


def to(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: to(inner, device) for name, inner in value.items()}
    return value.to(device) if isinstance(value, torch.Tensor) else value


def on_accelerator(trial: Trial, longest: Any) -> Callable[[int], bool]:
    def fits(size: int) -> bool:
        try:
            trial(longest[:size])
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        else:
            return True
        gc.collect()
        torch.cuda.empty_cache()
        return False

    return fits


def on_cpu(trial: Trial, longest: Any) -> Callable[[int], bool]:
    drawn = longest[:TRIED]
    row = trial.kept_bytes(drawn) / len(drawn)
    return lambda size: size * row <= SHARE * free_bytes()


def free_bytes() -> int:
    """Memory that the system can give; without /proc, as on a Mac, a quarter of what the machine has."""
    information = Path("/proc/meminfo")
    if information.is_file():
        lines = dict(line.split(":") for line in information.read_text(encoding="utf-8").splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
