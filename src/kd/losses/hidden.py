"""Hidden states and embeddings: TinyBERT equations 8 and 9, Jiao et al. 2020, https://arxiv.org/abs/1909.10351."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kd.errors import UserError
from kd.layer_map import Pairs, checked_pairs, hidden_pairs
from kd.losses.base import Batch, Loss, Signals, layers_of, projection
from kd.losses.functional import masked_cosine_distance, masked_squared_error
from kd.tasks.base import Task


class HiddenLoss(Loss):
    """Mean squared error of the hidden states of real tokens, averaged over tokens and width, summed over layers.

    ``layers`` is ``uniform`` or pairs ``[student, teacher]``. Where the widths differ, each pair learns a projection
    of its own, if ``project`` (the published code shares one, with a bias, among all layers and does not mask padding).
    """

    unit = "tokens"
    describes = "(W student - teacher)^2, mean over the teacher's width (W: learned where the widths differ),"

    def __init__(self, weight: float, layers: str | Sequence[Sequence[int]], project: bool = True) -> None:
        super().__init__(weight)
        self.layers = layers
        self.project = project

    def setup(self, student_config: Any, teacher_config: Any, task: Task) -> None:
        pairs = self.pairs(student_config.num_hidden_layers, teacher_config.num_hidden_layers)
        self.student_signals = tuple(f"hidden/{i}" for i, _ in pairs)
        self.teacher_signals = tuple(f"hidden/{j}" for _, j in pairs)
        widths = student_config.hidden_size, teacher_config.hidden_size
        self.projections = nn.ModuleList(projection(*widths, self.project) for _ in pairs)
        self.formula = f"{self.describes} of hidden states, summed over {layers_of(pairs)}"

    def pairs(self, student: int, teacher: int) -> Pairs:
        return hidden_pairs(self.layers, student, teacher)

    def error(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        """Of states ``[B, L, H]``: the sum over real tokens."""
        return masked_squared_error(student, teacher, mask)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> tuple[Tensor, Tensor]:
        mask = batch["student"]["attention_mask"]
        errors = [
            self.error(project(student[s]), teacher[t], mask)
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
        self.formula = f"{self.describes} of embeddings"


class HiddenCosineLoss(HiddenLoss):
    """1 - cosine of the hidden states of real tokens, averaged over tokens, summed over layers: directions only.

    DistilBERT, Sanh et al. 2019, https://arxiv.org/abs/1910.01108, section 3. ``layers`` is ``last`` or pairs.
    """

    describes = "1 - cosine(W student, teacher) (W: learned where the widths differ)"

    def __init__(self, weight: float, layers: str | Sequence[Sequence[int]] = "last", project: bool = True) -> None:
        super().__init__(weight, layers, project)
        if isinstance(layers, str) and layers != "last":
            raise UserError(
                f"{type(self).__name__}: layers={layers}: say last, or pairs [student layer, teacher layer]."
            )

    def pairs(self, student: int, teacher: int) -> Pairs:
        return checked_pairs([(student, teacher)] if isinstance(self.layers, str) else self.layers, student, teacher)

    def error(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        return masked_cosine_distance(student, teacher, mask)
