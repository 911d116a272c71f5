"""Any number of labels a text. One threshold for all of them, found on validation, makes probabilities to answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MultilabelAUROC

from kd.losses.functional import full
from kd.tasks.base import Decision, count_of
from kd.tasks.probabilities import Binary

THRESHOLDS = [i / 100 for i in range(1, 100)]


class ThresholdF1(Metric):
    """F1 at the threshold with the highest micro-F1 of those given; counts only, so ranks add up exactly."""

    full_state_update = False
    higher_is_better = True
    hits: Tensor
    guessed: Tensor
    real: Tensor

    def __init__(self, labels: int, thresholds: Sequence[float], average: str) -> None:
        super().__init__()
        self.average = average
        self.register_buffer("thresholds", torch.tensor(list(thresholds)), persistent=False)
        for name in ("hits", "guessed"):
            self.add_state(name, torch.zeros(len(thresholds), labels), dist_reduce_fx="sum")
        self.add_state("real", torch.zeros(labels), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        answers = full(logits).sigmoid()[None] > self.thresholds[:, None, None]  # type: ignore[index]
        self.hits += (answers & (labels > 0)[None]).sum(1)
        self.guessed += answers.sum(1)
        self.real += (labels > 0).sum(0)

    def best(self) -> int:
        return int(f1(self.hits.sum(-1), self.guessed.sum(-1), self.real.sum()).argmax())

    def compute(self) -> Tensor:
        best = self.best()
        if self.average == "micro":
            return f1(self.hits[best].sum(), self.guessed[best].sum(), self.real.sum())
        return f1(self.hits[best], self.guessed[best], self.real).mean()


def f1(hits: Tensor, guessed: Tensor, real: Tensor) -> Tensor:
    """``2 TP / (2 TP + FP + FN)``; 0 where nothing is and nothing was guessed."""
    return 2 * hits / (guessed + real).clamp(min=1)


class Multilabel(Binary):
    """Labels are rows of 0 and 1, ``[B, C]``."""

    select = "micro_f1"
    problem_type = "multi_label_classification"
    labels_are_kinds = True
    label_formula = "binary cross-entropy, mean over the labels that a row may have"
    divergence_formula = "T^2 binary KL(sigmoid(teacher / T) || sigmoid(student / T)), T = {T}, mean over labels"

    def label_loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy, the mean over labels: sum over rows, and B."""
        loss = F.binary_cross_entropy_with_logits(full(logits), labels.to(full(logits).dtype), reduction="none")
        return loss.mean(-1).sum(), count_of(logits)

    def decide(self, logits: Tensor, labels: Tensor) -> Decision:
        metric = ThresholdF1(len(self.label_names), THRESHOLDS, "micro")
        metric.update(logits, labels)
        return {"threshold": THRESHOLDS[metric.best()]}

    def metrics(self, decision: Decision | None = None) -> MetricCollection:
        thresholds = THRESHOLDS if decision is None else [decision["threshold"]]
        count = len(self.label_names)
        return MetricCollection(
            {
                "micro_f1": ThresholdF1(count, thresholds, "micro"),
                "macro_f1": ThresholdF1(count, thresholds, "macro"),
                "auroc": Auroc(count),
            }
        )

    def answers(self, logits: Tensor, decision: Decision) -> Tensor:
        return full(logits).sigmoid() > decision["threshold"]

    def chance(self, labels: Tensor) -> tuple[float, str]:
        """Of all answers that do not depend on the text, the best: always the k commonest labels, for some k."""
        counts = (labels > 0).sum(0).sort(descending=True).values.float()
        ks = torch.arange(1, len(counts) + 1)
        scores = f1(counts.cumsum(0), ks * len(labels), counts.sum())
        return float(scores.max()), f"always guessing the {int(scores.argmax()) + 1} commonest labels"

    def note(self, decision: Decision) -> str:
        return (
            f"Any number of labels may be right. kd answers with those whose probability is above "
            f"{decision['threshold']:g}, the best threshold on validation (in kd.json); transformers alone knows none."
        )

    def describe(self, logits: Tensor, decision: Decision) -> list[dict[str, Any]]:
        rows = []
        for probabilities in full(logits).sigmoid().tolist():
            named = dict(zip(self.label_names, probabilities, strict=True))
            chosen = [name for name, value in named.items() if value > decision["threshold"]]
            rows.append({"label": ", ".join(chosen), "labels": chosen, "probabilities": named})
        return rows


class Auroc(MultilabelAUROC):
    """Binned, of integer labels."""

    def __init__(self, count: int) -> None:
        super().__init__(count, average="macro", thresholds=200)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        super().update(logits, (labels > 0).long())
