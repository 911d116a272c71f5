"""The vectors of texts against the teacher's, for data.task=feature_extraction."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kd.errors import UserError
from kd.losses.base import Batch, Loss, Signals, count_of
from kd.losses.functional import cosine_distance, mean_squared_distance
from kd.tasks.base import Task


class VectorCosineLoss(Loss):
    """1 - cosine, the mean over rows: directions only."""

    compares = "1 - cosine(student, teacher) of the texts' vectors"

    def setup(self, student_config: Any, teacher_config: Any, task: Task) -> None:
        if task.auto_class().__name__ != "AutoModel":
            raise UserError(
                "it compares vectors of texts, and this task's models give something else: set "
                "data.task=feature_extraction, or take another method, such as logit."
            )
        self.student_signals = self.teacher_signals = ("logits",)
        self.formula = self.compares

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> tuple[Tensor, Tensor]:
        return cosine_distance(student["logits"], teacher["logits"]).sum(), count_of(student["logits"])


class VectorDistanceLoss(VectorCosineLoss):
    """Squared error averaged over the width, the mean over rows: lengths too (Reimers and Gurevych 2020, equation 1,
    https://arxiv.org/abs/2004.09813).
    """

    compares = "(student - teacher)^2 of the texts' vectors, mean over the width"

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> tuple[Tensor, Tensor]:
        return mean_squared_distance(student["logits"], teacher["logits"]).sum(), count_of(student["logits"])
