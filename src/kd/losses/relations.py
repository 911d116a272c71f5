"""How tokens relate in query, key or value: MiniLMv2 (Wang et al. 2021, https://arxiv.org/abs/2012.15828) and the
value relations of MiniLM (Wang et al. 2020, https://arxiv.org/abs/2002.10957).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from kd.errors import UserError, nearest
from kd.losses.attention import QueryLoss, check_heads
from kd.losses.base import Batch, Signals
from kd.losses.functional import attention_kl, relations
from kd.tasks.base import Task

KINDS = ("query", "key", "value")


class RelationLoss(QueryLoss):
    """KL of the teacher's relations from the student's: softmax(X X^T / sqrt(width)) over the real keys of a row.

    X is the query, key or value of a layer (``relations``, whose terms are added up), cut into ``relation_heads`` heads
    of its own, so that the models need neither the same width nor the same number of heads; null takes the heads that
    both models have (MiniLM). Mean over relation heads and over queries, sum over layers. ``layers`` is ``last`` (the
    last of both), ``uniform`` or pairs ``[student, teacher]``; ``unit`` is that of QueryLoss.
    """

    def __init__(
        self, weight: float, layers: str | Sequence[Sequence[int]], relations: Sequence[str],
        relation_heads: int | None, unit: str = "tokens",
    ) -> None:  # fmt: skip
        super().__init__(weight, layers, unit)
        for kind in relations:
            if kind not in KINDS:
                raise UserError(f"relations={list(relations)}:{nearest(str(kind), KINDS)} Known: {', '.join(KINDS)}.")
        if not relations or len(set(relations)) < len(relations):
            raise UserError(
                f"relations={list(relations)}: name each of {', '.join(KINDS)} at most once, and one of them."
            )
        self.relations = tuple(relations)
        self.relation_heads = relation_heads

    def setup(self, student_config: Any, teacher_config: Any, task: Task) -> None:
        pairs = self.pairs(student_config, teacher_config)
        if self.relation_heads is None:
            check_heads(student_config, teacher_config)
            self.heads = int(student_config.num_attention_heads)
        else:
            check_relation_heads(self.relation_heads, student_config.hidden_size, teacher_config.hidden_size)
            self.heads = self.relation_heads
        self.student_signals = tuple(f"{kind}/{i}" for i, _ in pairs for kind in self.relations)
        self.teacher_signals = tuple(f"{kind}/{j}" for _, j in pairs for kind in self.relations)
        self.formula = (
            "KL(softmax(R_teacher) || softmax(R_student)), R = X X^T / sqrt(width of a relation head), "
            f"X = {', '.join(self.relations)} (summed), mean over {self.heads} relation heads, {self.over(pairs)}"
        )

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> tuple[Tensor, Tensor]:
        mask = batch["student"]["attention_mask"]
        values = [
            attention_kl(relations(student[s], self.heads, mask), relations(teacher[t], self.heads, mask), mask)
            for s, t in zip(self.student_signals, self.teacher_signals, strict=True)
        ]
        return self.reduced(values, mask)


def check_relation_heads(heads: int, student_width: int, teacher_width: int) -> None:
    """Raises UserError if the heads do not divide both widths, naming numbers that do."""
    if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1:
        raise UserError(f"relation_heads={heads}: must be a whole number above 0.")
    if student_width % heads or teacher_width % heads:
        both = [n for n in range(1, min(student_width, teacher_width) + 1) if not student_width % n + teacher_width % n]
        raise UserError(
            f"relation_heads={heads} must divide the widths of both models, {student_width} of the student and "
            f"{teacher_width} of the teacher: take one of {', '.join(map(str, both))}."
        )
