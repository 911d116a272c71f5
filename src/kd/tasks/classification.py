"""One label out of several: binary and multiclass classification of a text."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from kd.losses.functional import full, softened_kl
from kd.tasks.base import Task


class Classification(Task):
    select = "accuracy"

    def auto_class(self) -> Any:
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def config_fields(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.label_names),
            "id2label": dict(enumerate(self.label_names)),
            "label2id": {name: i for i, name in enumerate(self.label_names)},
            "problem_type": "single_label_classification",
        }

    def label_loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of logits ``[B, C]`` with labels ``[B]``: sum over rows, and B."""
        count = torch.full((), float(len(labels)), device=labels.device)
        return F.cross_entropy(full(logits), labels, reduction="sum"), count

    def divergence(self, student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """T² KL of the softened distributions: sum over rows, and B."""
        count = torch.full((), float(len(student)), device=student.device)
        return softened_kl(student, teacher, temperature).sum(), count

    def metrics(self) -> MetricCollection:
        classes = len(self.label_names)
        return MetricCollection(
            {
                "accuracy": MulticlassAccuracy(classes, average="micro"),
                "macro_f1": MulticlassF1Score(classes, average="macro"),
            }
        )

    def agreement(self, student: Tensor, teacher: Tensor) -> float:
        return float((student.argmax(-1) == teacher.argmax(-1)).float().mean())

    def chance(self, labels: Tensor) -> tuple[float, str]:
        share = float(torch.bincount(labels).max()) / len(labels)
        return share, "always guessing the commonest class"

    def describe(self, logits: Tensor) -> list[dict[str, Any]]:
        rows = []
        for probabilities in full(logits).softmax(-1).tolist():
            best = max(range(len(probabilities)), key=probabilities.__getitem__)
            named = dict(zip(self.label_names, probabilities, strict=True))
            rows.append({"label": self.label_names[best], "probabilities": named})
        return rows
