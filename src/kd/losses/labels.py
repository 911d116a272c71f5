"""The labels themselves."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kd.errors import UserError
from kd.losses.base import Batch, Loss, Signals
from kd.tasks.base import Task


class HardLabelLoss(Loss):
    """The task's own label loss at temperature 1; cross-entropy for classification."""

    unit = "labels"

    def setup(self, student_config: Any, teacher_config: Any, task: Task) -> None:
        if not task.learns:
            raise UserError(
                "this task has no labels to learn from. Take method=embed, or leave this term out beside others: "
                "method=logit ~method.hard."
            )
        self.task = task
        self.student_signals = ("logits",)
        self.formula = task.label_formula

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.task.label_loss(student["logits"], batch["labels"])
