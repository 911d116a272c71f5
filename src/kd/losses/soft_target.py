"""Soft targets: Hinton, Vinyals and Dean 2015, https://arxiv.org/abs/1503.02531; and other ways to compare logits."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kd.errors import UserError
from kd.losses.base import Batch, Loss, Signals, above_zero, count_of
from kd.losses.functional import REDUCTIONS, kl, mean_squared_distance
from kd.tasks.base import Task


class SoftTargetLoss(Loss):
    """The task's divergence from the teacher's logits at ``temperature``, T² included.

    ``reduction: mean`` divides what is summed over classes by their number, as some published code does.
    """

    unit = "logits"

    def __init__(self, weight: float, temperature: float, reduction: str = "sum") -> None:
        super().__init__(weight)
        if reduction not in REDUCTIONS:
            raise UserError(f"{type(self).__name__}: reduction={reduction}: say {' or '.join(REDUCTIONS)}.")
        self.temperature = above_zero("temperature", temperature)
        self.reduction = reduction

    def setup(self, student_config: Any, teacher_config: Any, task: Task) -> None:
        if self.reduction == "mean" and not task.exclusive:
            raise UserError(
                "reduction=mean is a mean over the classes of one distribution, and this task has none: leave it out."
            )
        self.task = task
        self.student_signals = self.teacher_signals = ("logits",)
        formula = task.divergence_formula.format(T=f"{self.temperature:g}")
        self.formula = formula if self.reduction == "sum" else f"{formula}, divided by their number"

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> tuple[Tensor, Tensor]:
        value, count = self.task.divergence(student["logits"], teacher["logits"], self.temperature)
        return value / (1 if self.reduction == "sum" else student["logits"].shape[-1]), count


class DistributionLoss(Loss):
    """``compare`` of two models' distributions at ``temperature``, times T², the mean over the unit's distributions:
    one over all classes, or one for each label or threshold.
    """

    unit = "logits"
    describes: str  # compare, as a formula of p (the teacher's) and q (the student's)

    def __init__(self, weight: float, temperature: float) -> None:
        super().__init__(weight)
        self.temperature = above_zero("temperature", temperature)

    def setup(self, student_config: Any, teacher_config: Any, task: Task) -> None:
        if not task.softens:
            raise UserError(
                "it compares probabilities, and this task's outputs stand for none: take method=logit, which compares "
                "what there is."
            )
        self.task = task
        self.student_signals = self.teacher_signals = ("logits",)
        q = "softmax(student / T)" if task.exclusive else "sigmoid(student / T) of an output, or not"
        over = "" if task.exclusive else ", mean over outputs"
        self.formula = f"T^2 {self.describes}, T = {self.temperature:g}, q = {q}, p = the teacher's{over}"

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Of logits ``[N, C]``: ``[N, D, K]``, D distributions of K outcomes."""
        return self.task.log_probabilities(logits, self.temperature)

    def compare(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """Of the student's and the teacher's log-probabilities ``[N, D, K]``: ``[N, D]``."""
        raise NotImplementedError

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> tuple[Tensor, Tensor]:
        log_q, log_p = (self.log_probabilities(each["logits"]) for each in (student, teacher))
        return self.temperature**2 * self.compare(log_q, log_p).mean(-1).sum(), count_of(log_q)


class ReverseKLLoss(DistributionLoss):
    """KL(student || teacher): the student is to be sure only of what its teacher holds likely, and may leave out some
    of that (Gu et al. 2024, https://arxiv.org/abs/2306.08543, section 2.1).
    """

    describes = "KL(q || p), summed over outcomes"

    def compare(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return kl(log_q, log_p)


class JensenShannonLoss(DistributionLoss):
    """The mean of both models' KL from the mean of their distributions (Lin 1991): symmetric, log 2 at most."""

    describes = "(KL(p || m) + KL(q || m)) / 2, m = (p + q) / 2, summed over outcomes"

    def compare(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        log_m = torch.logaddexp(log_p, log_q) - math.log(2)
        return (kl(log_p, log_m) + kl(log_q, log_m)) / 2


class LogitDistanceLoss(Loss):
    """Squared error of the logits, the mean over them (Ba and Caruana 2014, https://arxiv.org/abs/1312.6184).

    Of numbers (regression) in standard deviations of the training labels, as their other losses are.
    """

    unit = "logits"

    def setup(self, student_config: Any, teacher_config: Any, task: Task) -> None:
        self.task = task
        self.student_signals = self.teacher_signals = ("logits",)
        scale = "" if task.scale == 1 else f" / {task.scale**2:g} (the variance of the targets)"
        self.formula = f"(student - teacher)^2{scale}, of logits, mean over them"

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> tuple[Tensor, Tensor]:
        distances = mean_squared_distance(student["logits"], teacher["logits"]) / self.task.scale**2
        return distances.sum(), count_of(distances)
