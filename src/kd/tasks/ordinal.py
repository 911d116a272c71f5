"""Levels in order: CORN (Shi, Cao and Raschka 2021, https://arxiv.org/abs/2111.08851), rank-consistent predictions.

Of K levels the head has K - 1 logits; the k-th says how likely a text is above level k, given it is above those before.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCohenKappa

from kd.losses.functional import full
from kd.tasks.base import Decision, count_of
from kd.tasks.probabilities import Binary
from kd.tasks.regression import Column


def above(logits: Tensor) -> Tensor:
    """``P(y > k)`` of each threshold, ``[B, K-1]``: products of the conditional ones, so they never rise with k."""
    return full(logits).sigmoid().cumprod(-1)


def levels(logits: Tensor) -> Tensor:
    """The predicted level: how many thresholds are more likely passed than not."""
    return (above(logits) > 0.5).sum(-1)


class Ordinal(Binary):
    """``label_names`` go from the lowest level to the highest."""

    select = "kappa"
    problem_type = "multi_label_classification"  # what a head of independent sigmoids is to transformers
    labels_are_kinds = True

    label_formula = "binary cross-entropy of the thresholds that the level reaches, summed, over all thresholds (CORN)"
    divergence_formula = "T^2 binary KL(sigmoid(teacher / T) || sigmoid(student / T)), T = {T}, mean over thresholds"

    @property
    def outputs(self) -> list[str]:
        return [f"above {name}" for name in self.label_names[:-1]]

    def label_loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy of the thresholds that a row's level reaches, over K - 1: sum over rows, and B."""
        thresholds = torch.arange(logits.shape[-1], device=logits.device)
        asked = labels[:, None] >= thresholds  # whether y > k is asked of those with y > k - 1 only
        passed = (labels[:, None] > thresholds).to(full(logits).dtype)
        loss = F.binary_cross_entropy_with_logits(full(logits), passed, reduction="none")
        return (loss * asked).mean(-1).sum(), count_of(logits)

    def metrics(self, decision: Decision | None = None) -> MetricCollection:
        count = len(self.label_names)
        return MetricCollection(
            {
                "kappa": Level(MulticlassCohenKappa(count, weights="quadratic")),
                "accuracy": Level(MulticlassAccuracy(count, average="micro")),
                "mae": Level(MeanAbsoluteError()),
            },
            compute_groups=False,
        )

    def answers(self, logits: Tensor, decision: Decision) -> Tensor:
        return levels(logits)

    def chance(self, labels: Tensor) -> tuple[float, str]:
        return 0.0, "an answer that does not depend on the text"

    def note(self, decision: Decision) -> str:
        return (
            f"The levels, lowest first: {', '.join(self.label_names)}. Each logit says whether a text is above one of "
            "them, given that it is above those before (CORN). kd answers with the median level: the number of "
            "thresholds that `logits.sigmoid().cumprod(-1)` has above 0.5. It need not be the likeliest single level."
        )

    def describe(self, logits: Tensor, decision: Decision) -> list[dict[str, Any]]:
        passed = F.pad(above(logits), (1, 0), value=1.0)
        chances = passed - F.pad(above(logits), (0, 1), value=0.0)
        return [
            {"label": self.label_names[level], "probabilities": dict(zip(self.label_names, row, strict=True))}
            for level, row in zip(levels(logits).tolist(), chances.tolist(), strict=True)
        ]


class Level(Column):
    """A metric of predicted levels."""

    def update(self, logits: Tensor, labels: Tensor) -> None:
        self.metric.update(levels(logits), labels)
