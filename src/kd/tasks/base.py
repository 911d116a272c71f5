"""What a task is to the rest of kd: head, label loss, divergence, metrics, and how a prediction reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torchmetrics import MetricCollection


class Task:
    """One kind of output. ``select`` names the metric (higher is better) that picks a checkpoint and is the score."""

    select: str

    def __init__(self, label_names: Sequence[str]) -> None:
        self.label_names = list(label_names)

    def auto_class(self) -> Any:
        """The transformers Auto class that has the head."""
        raise NotImplementedError

    def config_fields(self) -> dict[str, Any]:
        """What the model's config must say about this task."""
        raise NotImplementedError

    def label_loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Sum and count of the loss against the labels."""
        raise NotImplementedError

    def divergence(self, student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Sum and count of what logit distillation means for this kind of output."""
        raise NotImplementedError

    def metrics(self) -> MetricCollection:
        raise NotImplementedError

    def agreement(self, student: Tensor, teacher: Tensor) -> float:
        """Share of rows on which two models' logits lead to the same answer."""
        raise NotImplementedError

    def chance(self, labels: Tensor) -> tuple[float, str]:
        """The score that needs no model, and what it stands for."""
        raise NotImplementedError

    def describe(self, logits: Tensor) -> list[dict[str, Any]]:
        """Predictions for people: one dict a row."""
        raise NotImplementedError
