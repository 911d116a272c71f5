"""Tasks whose logits stand for probabilities, and what soft targets are for them (Hinton et al. 2015)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.losses.functional import kl, softened
from kd.tasks.base import Task, count_of


class Categorical(Task):
    """One of the outputs is right: a distribution over all of them."""

    softens = True
    exclusive = True

    def log_probabilities(self, logits: Tensor, temperature: float | Tensor) -> Tensor:
        return F.log_softmax(softened(logits, temperature), -1)[:, None]

    def divergence(self, student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """T² KL(teacher || student), the mean over distributions: sum over units, and their number.

        T² keeps the gradient's size when T changes.
        """
        log_q, log_p = (self.log_probabilities(logits, temperature) for logits in (student, teacher))
        return temperature**2 * kl(log_p, log_q).mean(-1).sum(), count_of(student)


class Binary(Categorical):
    """Each output is right or not: a distribution of its own."""

    exclusive = False

    def log_probabilities(self, logits: Tensor, temperature: float | Tensor) -> Tensor:
        z = softened(logits, temperature)
        return torch.stack([F.logsigmoid(-z), F.logsigmoid(z)], -1)
