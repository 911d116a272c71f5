"""Embeddings and hidden states through one map, as TinyBERT's published code compares them (Jiao et al. 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kd.layer_map import hidden_pairs
from kd.losses.base import Batch, Signals, layers_of, projection
from kd.losses.functional import masked_squared_error
from kd.losses.hidden import HiddenLoss
from kd.tasks.base import Task


class SharedHiddenLoss(HiddenLoss):
    """Mean squared error of the embeddings (layer 0) and of the paired hidden states, summed over all of them.

    One learned map with a bias serves all, where the widths differ. Mean over real tokens and width; the published code
    also counts padded places, and has its map where the widths agree, too. ``layers`` is ``uniform`` or pairs.
    """

    def setup(self, student_config: Any, teacher_config: Any, task: Task) -> None:
        layers = student_config.num_hidden_layers, teacher_config.num_hidden_layers
        pairs = [(0, 0), *hidden_pairs(self.layers, *layers)]
        self.student_signals = tuple(f"hidden/{i}" for i, _ in pairs)
        self.teacher_signals = tuple(f"hidden/{j}" for _, j in pairs)
        widths = student_config.hidden_size, teacher_config.hidden_size
        self.projection = projection(*widths, self.project, bias=True)
        self.formula = (
            "(W student + b - teacher)^2, mean over the teacher's width (one W and b for all, learned where the widths "
            f"differ), of embeddings (0) and hidden states, summed over {layers_of(pairs)}"
        )

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> tuple[Tensor, Tensor]:
        mask = batch["student"]["attention_mask"]
        errors = [
            masked_squared_error(self.projection(student[s]), teacher[t], mask)
            for s, t in zip(self.student_signals, self.teacher_signals, strict=True)
        ]
        return torch.stack(errors).sum(), mask.sum().float()
