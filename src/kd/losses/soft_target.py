"""Soft targets: Hinton, Vinyals and Dean 2015, https://arxiv.org/abs/1503.02531."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kd.losses.base import Batch, Loss, Signals
from kd.tasks.base import Task


class SoftTargetLoss(Loss):
    """The task's divergence from the teacher's logits at ``temperature``, T² included."""

    unit = "logits"

    def __init__(self, weight: float, temperature: float) -> None:
        super().__init__(weight)
        self.temperature = temperature

    def setup(self, student_config: Any, teacher_config: Any, task: Task) -> None:
        self.task = task
        self.student_signals = self.teacher_signals = ("logits",)
        self.formula = task.divergence_formula.format(T=f"{self.temperature:g}")

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.task.divergence(student["logits"], teacher["logits"], self.temperature)
