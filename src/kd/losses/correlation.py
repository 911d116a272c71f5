"""DIST: Huang, You, Wang, Qian and Xu 2022, https://arxiv.org/abs/2205.10536. Correlations instead of equality."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kd.losses.base import Batch, Signals, count_of
from kd.losses.functional import deviations
from kd.losses.scaled_logits import need_classes
from kd.losses.soft_target import DistributionLoss
from kd.tasks.base import Task


def anticorrelation(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - Pearson's correlation over the last axis: 0 to 2; 1 where one does not vary."""
    return 1 - (deviations(student) * deviations(teacher)).sum(-1)


class InterClassLoss(DistributionLoss):
    """1 - the correlation of both models' probabilities of a row's classes (equation 8)."""

    describes = "(1 - correlation of p and q over classes)"

    def setup(self, student_config: Any, teacher_config: Any, task: Task) -> None:
        super().setup(student_config, teacher_config, task)
        need_classes(task, "correlations over classes")

    def compare(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return anticorrelation(log_q.exp(), log_p.exp())


class IntraClassLoss(DistributionLoss):
    """1 - the correlation of both models' probabilities of a class over the rows, the mean over classes (equation 9).

    A loss of the batch: with several ranks each correlates its own rows, and the ranks' values are averaged, each with
    the weight of its rows. Two rows correlate by 1 or -1 whatever the models say; one row has no correlation and gives
    0.
    """

    describes = "(1 - correlation of p and q over the rank's batch), mean over classes"

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> tuple[Tensor, Tensor]:
        q, p = (self.log_probabilities(each["logits"]).exp().flatten(1) for each in (student, teacher))
        of_batch = anticorrelation(q.T, p.T).mean() if len(q) > 1 else 0 * q.sum()
        return len(q) * self.temperature**2 * of_batch, count_of(q)
