"""How tokens attend to each other: TinyBERT equation 7 (Jiao et al. 2020, https://arxiv.org/abs/1909.10351) and
MiniLM equation 1 (Wang et al. 2020, https://arxiv.org/abs/2002.10957).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kd.errors import UserError, nearest
from kd.layer_map import Pairs, attention_pairs
from kd.losses.base import Batch, Loss, Signals, count_of, layers_of
from kd.losses.functional import attention_kl, attention_squared_error
from kd.tasks.base import Task

UNITS = ("tokens", "examples")


class QueryLoss(Loss):
    """A term that has one value for each query, that is each real token, and a mean over them.

    ``unit: tokens`` is the mean over all real tokens of the global batch, so that longer rows weigh more; ``unit:
    examples`` the mean over each row's real tokens, then over rows. Either is the same however the rows are spread over
    ranks and accumulated batches. A row alone gives the same value in both.
    """

    def __init__(self, weight: float, layers: str | Sequence[Sequence[int]], unit: str) -> None:
        super().__init__(weight)
        if unit not in UNITS:
            raise UserError(
                f"{type(self).__name__}: unit={unit}:{nearest(str(unit), UNITS)} Known: {', '.join(UNITS)}."
            )
        self.layers = layers
        self.unit = unit

    def pairs(self, student_config: Any, teacher_config: Any) -> Pairs:
        return attention_pairs(self.layers, student_config.num_hidden_layers, teacher_config.num_hidden_layers)

    def reduced(self, values: list[Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
        """Summed over layers: ``[B, L]`` each, 0 where ``mask`` is."""
        value = torch.stack(values).sum(0)
        if self.unit == "tokens":
            return value.sum(), mask.sum().float()
        return (value.sum(-1) / mask.sum(-1).clamp(min=1)).sum(), count_of(value)

    def over(self, pairs: Pairs) -> str:
        """The end of the formula."""
        queries = ", mean over the row's tokens as queries" if self.unit == "examples" else ""
        return f"summed over {layers_of(pairs)}{queries}"


class AttentionLoss(QueryLoss):
    """What the two losses of attention scores share: pairs of layers whose heads can be compared one by one."""

    formula_of_scores: str

    def setup(self, student_config: Any, teacher_config: Any, task: Task) -> None:
        check_heads(student_config, teacher_config)
        pairs = self.pairs(student_config, teacher_config)
        check_windows(pairs, student_config, teacher_config)
        self.student_signals = tuple(f"attention/{i}" for i, _ in pairs)
        self.teacher_signals = tuple(f"attention/{j}" for _, j in pairs)
        self.formula = f"{self.formula_of_scores}, mean over heads, {self.over(pairs)}"

    def distance(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        """Scores ``[B, A, L, L]`` to ``[B, L]``, 0 for padded queries."""
        raise NotImplementedError

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> tuple[Tensor, Tensor]:
        mask = batch["student"]["attention_mask"]
        signals = zip(self.student_signals, self.teacher_signals, strict=True)
        return self.reduced([self.distance(student[s], teacher[t], mask) for s, t in signals], mask)


class AttentionScoreLoss(AttentionLoss):
    """Squared error of the raw scores Q K^T / sqrt(d), the mean over heads and over the pairs of real tokens of a row.

    TinyBERT equation 7. With ``unit: examples`` that mean is taken over each row's own pairs and then over rows, as the
    equation has it for one row; with ``unit: tokens`` over each query's real keys, then over the queries of all rows.
    The published code also counts the pairs with padding, as 0. ``layers`` is ``uniform``, ``last`` or pairs.
    """

    formula_of_scores = "(A_student - A_teacher)^2, A = Q K^T / sqrt(d), mean over the row's keys"

    def __init__(self, weight: float, layers: str | Sequence[Sequence[int]], unit: str = "examples") -> None:
        super().__init__(weight, layers, unit)

    def distance(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        return attention_squared_error(student, teacher, mask)


class AttentionKLLoss(AttentionLoss):
    """KL of the teacher's attention distributions from the student's, mean over heads and over queries.

    MiniLM equation 1. Only real tokens are keys, and only real tokens are queries. ``layers`` is ``last``, ``uniform``
    or pairs; ``unit`` is that of QueryLoss.
    """

    formula_of_scores = "KL(softmax(A_teacher) || softmax(A_student)), A = Q K^T / sqrt(d), sum over the row's keys"

    def __init__(self, weight: float, layers: str | Sequence[Sequence[int]], unit: str = "tokens") -> None:
        super().__init__(weight, layers, unit)

    def distance(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        return attention_kl(student, teacher, mask)


def check_heads(student_config: Any, teacher_config: Any) -> None:
    """Raises UserError if the models' heads cannot be compared one by one."""
    heads = student_config.num_attention_heads, teacher_config.num_attention_heads
    if heads[0] != heads[1]:
        raise UserError(
            f"it compares attention heads one by one, and the student has {heads[0]}, its teacher {heads[1]}. Take a "
            "student with as many heads, or method=minilmv2, which cuts the heads anew."
        )


def check_windows(pairs: Pairs, student_config: Any, teacher_config: Any) -> None:
    """Raises UserError for a layer that does not let every token see every other."""
    for role, config, taken in (
        ("student", student_config, [i for i, _ in pairs]), ("teacher", teacher_config, [j for _, j in pairs]),
    ):  # fmt: skip
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
        whole = [k for k, kind in enumerate(kinds, start=1) if kind == "full_attention"]
        narrow = [k for k in taken if k not in whole]
        if narrow:
            raise UserError(
                f"layer {narrow[0]} of the {role} attends within a sliding window only, so it has no scores for all "
                f"pairs of tokens. Its global layers are {', '.join(map(str, whole))}: name pairs of such layers, "
                "layers=[[student,teacher],...], or take method=minilmv2, which needs none."
            )
