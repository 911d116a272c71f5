"""Hidden states and embeddings: TinyBERT equations 8 and 9, Jiao et al. 2020, https://arxiv.org/abs/1909.10351."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kd.layer_map import hidden_pairs
from kd.losses.base import Batch, Loss, Signals, layers_of, projection
from kd.losses.functional import masked_squared_error
from kd.tasks.base import Task

SQUARED = "(W student - teacher)^2, mean over the teacher's width (W: learned where the widths differ),"


class HiddenLoss(Loss):
    """Mean squared error of the hidden states of real tokens, averaged over tokens and width, summed over layers.

    ``layers`` is ``uniform`` or pairs ``[student, teacher]``. Where the widths differ, each pair learns a projection
    of its own, if ``project`` (the published code shares one, with a bias, among all layers and does not mask padding).
    """

    unit = "tokens"

    def __init__(self, weight: float, layers: str | Sequence[Sequence[int]], project: bool = True) -> None:
        super().__init__(weight)
        self.layers = layers
        self.project = project

    def setup(self, student_config: Any, teacher_config: Any, task: Task) -> None:
        pairs = hidden_pairs(self.layers, student_config.num_hidden_layers, teacher_config.num_hidden_layers)
        self.student_signals = tuple(f"hidden/{i}" for i, _ in pairs)
        self.teacher_signals = tuple(f"hidden/{j}" for _, j in pairs)
        widths = student_config.hidden_size, teacher_config.hidden_size
        self.projections = nn.ModuleList(projection(*widths, self.project) for _ in pairs)
        self.formula = f"{SQUARED} of hidden states, summed over {layers_of(pairs)}"

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> tuple[Tensor, Tensor]:
        mask = batch["student"]["attention_mask"]
        errors = [
            masked_squared_error(project(student[s]), teacher[t], mask)
            for s, t, project in zip(self.student_signals, self.teacher_signals, self.projections, strict=True)
        ]
        return torch.stack(errors).sum(), mask.sum().float()


class EmbeddingLoss(HiddenLoss):
    """The same for the output of the embedding block (TinyBERT equation 9)."""

    def __init__(self, weight: float, project: bool = True) -> None:
        super().__init__(weight, layers=(), project=project)

    def setup(self, student_config: Any, teacher_config: Any, task: Task) -> None:
        self.student_signals = self.teacher_signals = ("embedding",)
        widths = student_config.hidden_size, teacher_config.hidden_size
        self.projections = nn.ModuleList([projection(*widths, self.project)])
        self.formula = f"{SQUARED} of embeddings"
