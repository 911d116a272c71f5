"""Patient knowledge distillation: Sun, Cheng, Gan and Liu 2019, https://arxiv.org/abs/1908.09355."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kd.errors import UserError
from kd.layer_map import patient_pairs
from kd.losses.base import Batch, Loss, Signals, count_of, layers_of, projection
from kd.losses.functional import REDUCTIONS, patient_distance
from kd.tasks.base import Task


class PatientLoss(Loss):
    """Squared distance of the [CLS] states of intermediate layers, summed over layers and width, mean over rows.

    ``layers`` is ``skip``, ``last`` or pairs ``[student, teacher]``. This is the paper's sum; the published code
    averages over layers and width (``reduction: mean``), so its weight (10 to 1000) is that product larger. Where the
    widths differ, each pair learns a projection of the student's state, if ``project`` (not in the paper, whose
    students are as wide).
    """

    def __init__(
        self, weight: float, layers: str | Sequence[Sequence[int]], normalize: bool = True, project: bool = True,
        reduction: str = "sum",
    ) -> None:  # fmt: skip
        super().__init__(weight)
        if reduction not in REDUCTIONS:
            raise UserError(f"{type(self).__name__}: reduction={reduction}: say {' or '.join(REDUCTIONS)}.")
        self.reduction = reduction
        self.project = project
        self.layers = layers
        self.normalize = normalize

    def setup(self, student_config: Any, teacher_config: Any, task: Task) -> None:
        pairs = patient_pairs(self.layers, student_config.num_hidden_layers, teacher_config.num_hidden_layers)
        self.student_signals = tuple(f"cls/{i}" for i, _ in pairs)
        self.teacher_signals = tuple(f"cls/{j}" for _, j in pairs)
        widths = student_config.hidden_size, teacher_config.hidden_size
        self.projections = nn.ModuleList(projection(*widths, self.project) for _ in pairs)
        compared = "|n(W student) - n(teacher)|^2, n(x) = x / |x|" if self.normalize else "|W student - teacher|^2"
        over = "summed" if self.reduction == "sum" else "mean"
        self.formula = f"{compared}, of [CLS] states, {over} over the width and {layers_of(pairs)}"
        self.divisor = 1 if self.reduction == "sum" else len(pairs) * teacher_config.hidden_size

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> tuple[Tensor, Tensor]:
        distances = [
            patient_distance(project(student[s]), teacher[t], self.normalize).sum()
            for s, t, project in zip(self.student_signals, self.teacher_signals, self.projections, strict=True)
        ]
        return torch.stack(distances).sum() / self.divisor, count_of(student[self.student_signals[0]])
