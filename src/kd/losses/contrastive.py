"""Contrastive distillation in a batch: InfoNCE (van den Oord et al. 2018, https://arxiv.org/abs/1807.03748, equation 4)
between student and teacher, as in CRD (Tian et al. 2020, https://arxiv.org/abs/1910.10699) without its memory bank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from kd.errors import UserError
from kd.losses.base import Batch, Loss, Signals, above_zero, count_of, layers_of, projection
from kd.losses.functional import directions, full
from kd.tasks.base import Task

SAME_LABEL = ("exclude", "keep")


def info_nce(student: Tensor, teacher: Tensor, own: Tensor, left_out: Tensor | None, temperature: float) -> Tensor:
    """``-log softmax_j(cos(student_b, teacher_j) / temperature)`` at ``j = own_b``: ``[B]``, nothing reduced.

    Student ``[B, H]``, teacher ``[N, H]``, own ``[B]``: which of the N belongs to each. ``left_out`` ``[B, N]`` are no
    negatives of the row; its own vector stays.
    """
    cosines = directions(full(student)) @ directions(full(teacher)).T / temperature
    if left_out is not None:
        cosines = cosines.masked_fill(left_out.scatter(1, own[:, None], False), -torch.inf)
    return F.cross_entropy(cosines, own, reduction="none")


def of_all_ranks(rows: Tensor) -> tuple[Tensor, int]:
    """The rows of every rank, one rank after the other, without gradient; and where this rank's begin.

    Ranks may have different numbers of rows: they are padded for the way and cut again, which waits for the counts.
    """
    rows = rows.detach()
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return rows, 0
    ranks, rank = dist.get_world_size(), dist.get_rank()
    count = torch.tensor([len(rows)], device=rows.device)
    gathered = [torch.empty_like(count) for _ in range(ranks)]
    dist.all_gather(gathered, count)
    counts = torch.cat(gathered).tolist()
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(ranks)]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)]), sum(counts[:rank])


class ContrastiveLoss(Loss):
    """Each row's last [CLS] state finds its teacher's among those of the whole batch: InfoNCE of cosines.

    The teacher's states (and labels) are those of all ranks, so that several ranks are one with all the rows; the
    batches that are accumulated each see their own rows only. ``same_label: exclude`` leaves out rows of the same
    label, which are no negatives; ``keep`` has them. It says nothing where labels are numbers, or not of rows.
    ``symmetric`` averages it with the other way, the teacher's state finding the student's among the rank's own rows.
    A student of another width learns a projection, if ``project``.
    """

    def __init__(
        self, weight: float, temperature: float, same_label: str = "exclude", symmetric: bool = False,
        project: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(weight)
        if same_label not in SAME_LABEL:
            raise UserError(f"{type(self).__name__}: same_label={same_label}: say {' or '.join(SAME_LABEL)}.")
        self.temperature = above_zero("temperature", temperature)
        self.same_label = same_label
        self.symmetric = symmetric
        self.project = project

    def setup(self, student_config: Any, teacher_config: Any, task: Task) -> None:
        last = student_config.num_hidden_layers, teacher_config.num_hidden_layers
        self.student_signals, self.teacher_signals = (f"cls/{last[0]}",), (f"cls/{last[1]}",)
        self.projection = projection(student_config.hidden_size, teacher_config.hidden_size, self.project)
        self.excludes = self.same_label == "exclude" and task.labels_are_kinds
        state = "W student" if list(self.projection.parameters()) else "student"
        self.formula = (
            f"-log softmax_j(cos({state}, teacher_j) / T) at the row's own teacher_j, T = {self.temperature:g}, of "
            f"[CLS] states of {layers_of([last])}, j over the rows of all ranks"
            + (" but those of the same label" if self.excludes else "")
            + (f", averaged with that of cos(teacher, {state}_j), j over the rank's own rows" if self.symmetric else "")
        )

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> tuple[Tensor, Tensor]:
        ours, own = self.projection(student[self.student_signals[0]]), full(teacher[self.teacher_signals[0]])
        theirs, first = of_all_ranks(own)
        place = torch.arange(len(ours), device=ours.device)
        left_out = alike(batch["labels"], of_all_ranks(batch["labels"])[0]) if self.excludes else None
        value = info_nce(ours, theirs, first + place, left_out, self.temperature).sum()
        if self.symmetric:
            left_out = alike(batch["labels"], batch["labels"]) if self.excludes else None
            value = (value + info_nce(own, ours, place, left_out, self.temperature).sum()) / 2
        return value, count_of(ours)


def alike(labels: Tensor, others: Tensor) -> Tensor:
    """Which have equal labels, ``[B, ...]`` and ``[N, ...]`` to ``[B, N]``; of several a row, all of them equal."""
    return (labels.reshape(len(labels), 1, -1) == others.reshape(1, len(others), -1)).all(-1)
