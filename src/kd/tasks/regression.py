"""A number for a text. Logits are in the data's own units everywhere; only the losses are scaled."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanSquaredError, Metric, MetricCollection, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.wrappers.abstract import WrapperMetric

from kd.errors import UserError
from kd.losses.functional import full
from kd.tasks.base import Decision, Task, count_of


class Column(WrapperMetric):
    """A metric of single numbers, for logits ``[B, 1]``."""

    def __init__(self, metric: Metric) -> None:
        super().__init__()
        self.metric = metric

    def update(self, logits: Tensor, labels: Tensor) -> None:
        self.metric.update(full(logits)[:, 0], labels.to(full(logits).dtype))

    def compute(self) -> Tensor:
        value: Tensor = self.metric.compute()
        return value

    def reset(self) -> None:
        self.metric.reset()
        super().reset()


class Regression(Task):
    """Losses are divided by the variance of the training labels, so that their size does not depend on the units.

    A new head starts at the mean of the labels with weights in their scale: what it predicts needs no scaling back,
    also where transformers alone loads it.
    """

    select = "pearson"
    problem_type = "regression"
    label_formula = "(student - target)^2 / variance of the targets"
    divergence_formula = "(student - teacher)^2 / variance of the targets"

    def __init__(self, label_names: Sequence[str]) -> None:
        super().__init__(label_names)
        self.mean, self.scale = 0.0, 1.0

    def see(self, labels: Sequence[Any]) -> None:
        self.mean, self.scale = statistics.fmean(labels), statistics.pstdev(labels)
        if not self.scale > 0:
            raise UserError(f"Every training row has the same target {self.mean:g}: there is nothing to learn.")

    def start_head(self, head: nn.Linear) -> None:
        with torch.no_grad():
            head.weight.mul_(self.scale)
            head.bias.fill_(self.mean)

    def label_loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Squared error in standard deviations of the targets: sum over rows, and B."""
        error = (full(logits)[:, 0] - labels.to(full(logits).dtype)) / self.scale
        return error.pow(2).sum(), count_of(logits)

    def divergence(self, student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Squared error to the teacher's prediction, likewise; a temperature means nothing here."""
        return ((full(student) - full(teacher))[:, 0] / self.scale).pow(2).sum(), count_of(student)

    def metrics(self, decision: Decision | None = None) -> MetricCollection:
        return MetricCollection(
            {"pearson": Column(PearsonCorrCoef()), "spearman": Column(SpearmanCorrCoef()),
             "rmse": Column(MeanSquaredError(squared=False))},
            compute_groups=False,
        )  # fmt: skip

    def answers(self, logits: Tensor, decision: Decision) -> Tensor:
        return full(logits)[:, 0]

    def agreement(self, student: Tensor, teacher: Tensor) -> float:
        """Pearson's correlation of the two models' predictions."""
        return float(torch.corrcoef(torch.stack([student, teacher]))[0, 1].nan_to_num(0.0))

    def same(self, answers: Tensor, reference: Tensor) -> float:
        """Lin's concordance (1989): correlation that a shift and another scale lower, too."""
        (a, b), means = (answers - answers.mean(), reference - reference.mean()), answers.mean() - reference.mean()
        apart = a.square().mean() + b.square().mean() + means.square()
        return float(2 * (a * b).mean() / apart) if apart > 0 else 1.0

    def spread(self, logits: Tensor) -> float:
        return float(logits.float().std()) or 1.0

    def chance(self, labels: Tensor) -> tuple[float, str]:
        return 0.0, "a prediction that does not depend on the text"

    def describe(self, logits: Tensor, decision: Decision) -> list[dict[str, Any]]:
        return [{"label": value} for value in full(logits)[:, 0].tolist()]
