"""How the rows of a batch lie to each other. Widths may differ: each model is compared with itself first.

RKD, distances and angles: Park, Kim, Lu and Cho 2019, https://arxiv.org/abs/1904.05068, equations 4 to 8. Similarities:
Tung and Mori 2019, https://arxiv.org/abs/1907.09682, equations 2 to 4.

These are losses of a batch, not of a row: with several ranks each compares the rows of its own, and the ranks' values
are averaged, each with the weight of its rows. Two batches that are accumulated are not one of twice the size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.losses.base import Batch, Loss, Signals, count_of, layers_of
from kd.losses.functional import directions, full
from kd.tasks.base import Task

ROUNDING = 1e-6  # of the largest distance: states that are nearer are equal but for rounding


def relative_distances(states: Tensor) -> Tensor:
    """Euclidean distances of states ``[B, H]``, over the mean of those above 0: ``[B, B]``, 0 if all are equal."""
    states = full(states)
    found = torch.cdist(states, states, compute_mode="donot_use_mm_for_euclid_dist")  # 0 and its gradient are exact
    mean = found.sum() / (found > 0).sum().clamp(min=1)
    return found / mean.masked_fill(mean == 0, 1.0)


def cosines_of_angles(states: Tensor) -> Tensor:
    """``[j, i, k]``: the cosine of the angle at j between i and k, of states ``[B, H]``; 0 where two of them are equal.

    Needs room for ``[B, B, H]`` and ``[B, B, B]``.
    """
    states = full(states)
    apart = states[None] - states[:, None]
    none = (ROUNDING**2) * apart.detach().pow(2).sum(-1).max()
    lines = directions(apart, none)
    return lines @ lines.transpose(1, 2)


def similarities(states: Tensor) -> Tensor:
    """Inner products of states ``[B, H]``, each row of them with length 1: ``[B, B]``."""
    return directions(full(states) @ full(states).T)


class RelationalLoss(Loss):
    """``of_batch`` compares the last layers' [CLS] states, ``[B, H]`` each, in one number."""

    describes: str  # of_batch, as a formula

    def setup(self, student_config: Any, teacher_config: Any, task: Task) -> None:
        last = student_config.num_hidden_layers, teacher_config.num_hidden_layers
        self.student_signals, self.teacher_signals = (f"cls/{last[0]}",), (f"cls/{last[1]}",)
        self.formula = f"{self.describes} of the rank's batch, of [CLS] states of {layers_of([last])}"

    def of_batch(self, student: Tensor, teacher: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> tuple[Tensor, Tensor]:
        ours, theirs = student[self.student_signals[0]], teacher[self.teacher_signals[0]]
        return len(ours) * self.of_batch(ours, theirs), count_of(ours)


class RelationalDistanceLoss(RelationalLoss):
    """RKD-D: the Huber loss (delta 1) of distances over their mean, averaged over all B^2 pairs."""

    describes = "huber(d(student) - d(teacher)), d = distance of two rows / their mean, mean over all B^2 pairs"

    def of_batch(self, student: Tensor, teacher: Tensor) -> Tensor:
        return F.huber_loss(relative_distances(student), relative_distances(teacher))


class RelationalAngleLoss(RelationalLoss):
    """RKD-A: the Huber loss (delta 1) of the cosines of angles, averaged over all B^3 triples."""

    describes = "huber(c(student) - c(teacher)), c = cosine of the angle of three rows, mean over all B^3 triples"

    def of_batch(self, student: Tensor, teacher: Tensor) -> Tensor:
        return F.huber_loss(cosines_of_angles(student), cosines_of_angles(teacher))


class SimilarityLoss(RelationalLoss):
    """Similarity-preserving: the squared difference of similarities, averaged over all B^2 pairs."""

    describes = (
        "(G(student) - G(teacher))^2, G = inner products of two rows, G's rows of length 1, mean over all B^2 pairs"
    )

    def of_batch(self, student: Tensor, teacher: Tensor) -> Tensor:
        return F.mse_loss(similarities(student), similarities(teacher))
