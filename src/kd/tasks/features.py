"""Vectors of texts (sentence embeddings): no head, no labels; the teacher's vectors are what there is to learn.

What is scored is the cosine to the teacher's vector. Rows that are pairs of texts are read as two texts; where they
have labels too, the cosine of the two vectors is compared with these (STS: Cer et al. 2017,
https://arxiv.org/abs/1708.00055).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.functional import spearman_corrcoef

from kd.losses.functional import cosine_distance, full
from kd.store import content_key
from kd.tasks.base import Decision, Task, count_of

NEIGHBOURS = 2000  # rows at most whose nearest others are looked for: all pairs of them are compared
SHOWN = 3  # numbers of a vector in its label


class MeanCosine(Metric):
    """The mean over rows of the cosine of two vectors, ``[B, H]`` each."""

    full_state_update = False
    higher_is_better = True
    total: Tensor
    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "rows"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, student: Tensor, teacher: Tensor) -> None:
        self.total += (1 - cosine_distance(student, teacher)).clamp(-1, 1).sum()
        self.rows += len(student)

    def compute(self) -> Tensor:
        return self.total / self.rows


class FeatureExtraction(Task):
    """Logits are the vectors, ``[B, H]``; labels as metrics see them are the teacher's.

    ``width`` is the teacher's (0: not known yet), ``similarities`` the labels of pairs, by split. ``label_names`` of
    the data make no outputs here.
    """

    select = "cosine"
    labelled = False
    scored_against_teacher = True
    learns = False
    divergence_formula = "1 - cosine(student, teacher) of the texts' vectors"

    def __init__(self, label_names: Sequence[str] = ()) -> None:
        super().__init__(())
        self.names_of_data = list(label_names)
        self.width = 0
        self.similarities: dict[str, Tensor] = {}

    def auto_class(self) -> Any:
        from transformers import AutoModel

        return AutoModel

    def config_fields(self) -> dict[str, Any]:
        return {"kd_vector": self.width}

    def follow(self, teacher: Any) -> None:
        self.width = teacher.config.kd_vector

    def prepare(self, data: Any) -> Any:
        """Texts without labels; pairs as single texts, first and second in turn.

        The labels of pairs are kept aside where they are numbers or two classes.
        """
        from datasets import Dataset

        splits = {}
        for split, rows in data.splits.items():
            if "text_pair" not in rows.column_names:
                bare = {name: each.remove_columns([c for c in each.column_names if c == "label"])
                        for name, each in data.splits.items()}  # fmt: skip
                return replace(data, splits=bare, key=content_key(data=data.key, labels=False))
            both = zip(rows["text"], rows["text_pair"], strict=True)
            splits[split] = Dataset.from_dict({"text": [text for pair in both for text in pair]})
            labels = list(rows["label"]) if "label" in rows.column_names else []
            if labels and isinstance(labels[0], int | float) and len(self.names_of_data) <= 2:
                self.similarities[split] = torch.tensor(labels, dtype=torch.float32)
        return replace(data, splits=splits, key=content_key(data=data.key, texts="single"), text_columns=("text",))

    def divergence(self, student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """1 - cosine of vectors ``[B, H]``: sum over rows, and B; a temperature means nothing here."""
        return cosine_distance(student, teacher).sum(), count_of(student)

    def metrics(self, decision: Decision | None = None) -> MetricCollection:
        return MetricCollection({"cosine": MeanCosine()})

    def extra(self, split: str, logits: Tensor) -> dict[str, float]:
        """``spearman`` of the cosine of two texts with their label, where a split has such: rows are texts in turn."""
        if split not in self.similarities:
            return {}
        cosines = 1 - cosine_distance(logits[0::2], logits[1::2])
        return {"spearman": float(spearman_corrcoef(cosines, self.similarities[split]).nan_to_num(0.0))}

    def answers(self, logits: Tensor, decision: Decision) -> Tensor:
        """Which other row is nearest to each, ``[N]``, by cosine, among the first NEIGHBOURS rows."""
        directions = F.normalize(full(logits[:NEIGHBOURS]), dim=-1)
        return (directions @ directions.T).fill_diagonal_(-2.0).argmax(-1)

    def chance(self, labels: Tensor) -> tuple[float, str]:
        """The mean cosine of the vectors with the mean of their directions: no constant vector has a higher one.

        It is the length of that mean. Rounded up, so that no rounding lets a teacher pass whose vectors are all one.
        """
        directions = F.normalize(labels.double(), dim=-1)
        return math.ceil(1e4 * float(directions.mean(0).norm()) - 1e-6) / 1e4, "one vector for all texts"

    def note(self, decision: Decision) -> str:
        return "What kd gives for a text is a vector; the cosine of two says how alike their texts are to the teacher."

    def describe(self, logits: Tensor, decision: Decision) -> list[dict[str, Any]]:
        rows = []
        for vector in full(logits).tolist():
            shown = ", ".join(f"{value:.4f}" for value in vector[:SHOWN])
            rows.append({"label": f"[{shown}, ...] {len(vector)} numbers", "vector": vector})
        return rows

    def about(self, models: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        return {
            f"Spearman of {split} pairs": ", ".join(
                f"{name} {found[split]['spearman']:.4f}" for name, found in models.items()
            )
            for split in ("validation", "test")
            if split in self.similarities
        }
