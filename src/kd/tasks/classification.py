"""One label out of several: binary and multiclass classification of a text."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassF1Score,
    MulticlassMatthewsCorrCoef,
)

from kd.losses.functional import full
from kd.tasks.base import Decision, count_of
from kd.tasks.probabilities import Categorical


class Classification(Categorical):
    select = "accuracy"
    problem_type = "single_label_classification"
    labels_are_kinds = True
    label_formula = "cross-entropy of the label"
    divergence_formula = "T^2 KL(softmax(teacher / T) || softmax(student / T)), T = {T}, summed over classes"

    def label_loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of logits ``[B, C]`` with labels ``[B]``: sum over rows, and B."""
        return F.cross_entropy(full(logits), labels, reduction="sum"), count_of(logits)

    def metrics(self, decision: Decision | None = None) -> MetricCollection:
        classes = len(self.label_names)
        return MetricCollection(
            {
                "accuracy": MulticlassAccuracy(classes, average="micro"),
                "macro_f1": MulticlassF1Score(classes, average="macro"),
                "mcc": MulticlassMatthewsCorrCoef(classes),
                "auroc": MulticlassAUROC(classes, average="macro", thresholds=200),  # binned: no row is kept
            }
        )

    def answers(self, logits: Tensor, decision: Decision) -> Tensor:
        return logits.argmax(-1)

    def chance(self, labels: Tensor) -> tuple[float, str]:
        share = float(torch.bincount(labels).max()) / len(labels)
        return share, "always guessing the commonest class"

    def interval(self, score: float, logits: Tensor, labels: Tensor, decision: Decision) -> tuple[float, float]:
        return wilson_interval(score, len(labels))

    def describe(self, logits: Tensor, decision: Decision) -> list[dict[str, Any]]:
        rows = []
        for probabilities in full(logits).softmax(-1).tolist():
            best = max(range(len(probabilities)), key=probabilities.__getitem__)
            named = dict(zip(self.label_names, probabilities, strict=True))
            rows.append({"label": self.label_names[best], "probabilities": named})
        return rows


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927), right also near 0 and 1 and for few rows."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return centre - half, centre + half
