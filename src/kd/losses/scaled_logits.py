"""Soft targets whose temperature depends on the logits."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kd.errors import UserError
from kd.losses.base import Batch, Signals, count_of
from kd.losses.functional import cosine_distance, deviations, full, kl
from kd.losses.soft_target import DistributionLoss
from kd.tasks.base import Task

KINDS = ("flsw", "cwsm")


class DynamicTemperatureLoss(DistributionLoss):
    """KL at a temperature for each row: lower for the rows that are harder than the batch's mean (Wen, Lai and Qian
    2019, https://arxiv.org/abs/1911.07471, as TextBrewer has it).

    ``T_b = temperature + beta (mean of w - w_b)``, 1 at least, and a constant in the gradient; T_b² stands before the
    row's KL. ``kind: flsw`` has ``w = (1 - cosine of both models' logits)^gamma``; ``cwsm`` has ``w = 1 / (the
    student's highest probability + 0.001)``, of several labels the mean of their highest. The mean is over the rank's
    own batch, which makes this a loss of the batch: rows that are split otherwise have other temperatures.
    """

    describes = "KL(p || q), summed over outcomes"

    def __init__(self, weight: float, temperature: float, kind: str, beta: float = 1.0, gamma: float = 1.0) -> None:
        super().__init__(weight, temperature)
        if kind not in KINDS:
            raise UserError(f"{type(self).__name__}: kind={kind}: say {' or '.join(KINDS)}.")
        if kind == "cwsm" and gamma != 1:
            raise UserError(f"{type(self).__name__}: gamma={gamma} is read with kind=flsw only: leave it out.")
        self.kind = kind
        self.beta = beta
        self.gamma = gamma

    def setup(self, student_config: Any, teacher_config: Any, task: Task) -> None:
        super().setup(student_config, teacher_config, task)
        w = f"(1 - cos(student, teacher))^{self.gamma:g}" if self.kind == "flsw" else "1 / (max q at T = 1 + 0.001)"
        fixed = f"T = {self.temperature:g}"
        own = f"T = max(1, {self.temperature:g} + {self.beta:g} (mean w of the rank's batch - w)) of each row, w = {w}"
        self.formula = self.formula.replace(fixed, own, 1)

    @torch.no_grad()
    def temperatures(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of logits ``[N, C]``: ``[N]``."""
        if self.kind == "flsw":
            weights = cosine_distance(student, teacher).clamp(min=0) ** self.gamma
        else:
            weights = 1 / (self.task.log_probabilities(student, 1.0).exp().amax(-1).mean(-1) + 1e-3)
        return (self.temperature + self.beta * (weights.mean() - weights)).clamp(min=1)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> tuple[Tensor, Tensor]:
        ours, theirs = student["logits"], teacher["logits"]
        temperatures = self.temperatures(ours, theirs)
        log_q, log_p = (self.task.log_probabilities(logits, temperatures) for logits in (ours, theirs))
        return (temperatures**2 * kl(log_p, log_q).mean(-1)).sum(), count_of(ours)


class StandardizedLogitLoss(DistributionLoss):
    """KL of logits that have mean 0 and standard deviation 1 in each row: their order and proportions, not their size.

    Sun et al. 2024, https://arxiv.org/abs/2403.01427.

    A row of equal logits stays one, with all classes as likely.
    """

    describes = "KL(p || q), summed over classes, logits less their mean, over their standard deviation (of K - 1)"

    def setup(self, student_config: Any, teacher_config: Any, task: Task) -> None:
        super().setup(student_config, teacher_config, task)
        need_classes(task, "standardised logits")

    def log_probabilities(self, logits: Tensor) -> Tensor:
        return super().log_probabilities(standardized(logits))

    def compare(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return kl(log_p, log_q)


def standardized(logits: Tensor) -> Tensor:
    """Logits ``[N, C]`` less their mean, over their standard deviation (of C - 1); 0 where all are equal."""
    return deviations(full(logits)) * math.sqrt(logits.shape[-1] - 1)


def need_classes(task: Task, what: str) -> None:
    """Raises UserError where two numbers of one row would be compared after shift and scale: all such are alike."""
    if not task.exclusive or len(task.outputs) in (1, 2):
        raise UserError(
            f"{what} take three outputs or more of which one is right: shifted and scaled, any two numbers are alike, "
            "and outputs that are right or wrong each by itself are compared so one by one. Leave this term out "
            "(~method.TERM), or take method=logit."
        )
