"""An export against the model it was made from, on validation rows of mixed lengths and batch sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from kd.batches import Draw
from kd.datamodule import TextDataModule
from kd.export.limits import Limits
from kd.tasks import Decision, Task
from kd.units import logits_at

BATCHES = (1, 3, 8, 32, 64)
KEPT = 2**26  # logits of the reference that are kept to be compared; all rows count for agreement and score
LARGEST = 2**26  # logits of one batch: those of a vocabulary take many


@dataclass
class Answers:
    """What a model gave: ``digest``, what its task keeps of all logits; ``logits``, of the first rows, themselves."""

    digest: Tensor
    logits: Tensor
    decision: Decision = field(default_factory=dict)


class Gate:
    """The reference runs once, whatever the number of exports.

    Args:
        model: what exports are made from.
        labels: what validation is scored against; None for its labels or, where there are none, what ``model`` gives.
    """

    def __init__(self, model: Any, rows: TextDataModule, task: Task, labels: Tensor | None = None) -> None:
        self.rows, self.task = rows, task
        self.reference = self.answers(model)
        if labels is None:
            own = self.reference.digest if task.scored_against_teacher else rows.splits["validation"].labels
            labels = torch.as_tensor(own)
        self.labels = labels
        self.reference.decision = task.decide(self.reference.digest, labels)

    def batches(self) -> Iterator[dict[str, Any]]:
        """Validation in its order, 1, 3, 8, 32 and 64 rows at a time, each padded to its longest."""
        split, start = self.rows.splits["validation"], 0
        for size in cycle(BATCHES):
            if start >= len(split):
                return
            yield split[Draw(list(range(start, min(start + size, len(split)))), {})]
            start += size

    @torch.no_grad()
    def answers(self, model: Any) -> Answers:
        digests, kept, room = [], [], KEPT
        for batch in self.batches():
            logits = logits_at(model, **batch["student"]).float()
            digests.append(self.task.digest(logits, batch["labels"]))
            if logits.numel() <= room:
                kept.append(logits)
                room -= logits.numel()
            else:
                room = 0  # the same rows of every model
        return Answers(torch.cat(digests), torch.cat(kept))

    def figures(self, model: Any) -> tuple[dict[str, float], Decision]:
        """``max_difference`` and ``mean_difference`` of logits, ``agreement``, ``score``, ``score_difference`` (points;
        percent where lower is better), and what the task decides for this model.
        """
        found = self.answers(model)
        found.decision = self.task.decide(found.digest, self.labels)
        difference = (found.logits - self.reference.logits).abs() / self.task.spread(self.reference.logits)
        own, wanted = (self.task.answers(one.digest, one.decision) for one in (found, self.reference))
        score, reference = (self.score(one) for one in (found, self.reference))
        change = score - reference if self.task.higher_is_better else score / reference - 1
        return {
            "max_difference": float(difference.max()),
            "mean_difference": float(difference.mean()),
            "agreement": self.task.same(own, wanted),
            "score": score,
            "score_difference": 100 * change,
            "rows": len(self.rows.splits["validation"]),
        }, found.decision

    def score(self, answers: Answers) -> float:
        metric = self.task.metrics(answers.decision)[self.task.select]
        metric.update(answers.digest, self.labels)
        return float(metric.compute())


def misses(figures: dict[str, float], limits: Limits) -> list[str]:
    """What an export does not reach, in words; not a number reaches nothing."""
    mean, agreement, score = (figures[name] for name in ("mean_difference", "agreement", "score_difference"))
    found = []
    if limits.mean_difference is not None and not mean <= limits.mean_difference:
        found.append(f"mean logit difference {mean:.2e}, at most {limits.mean_difference:.2e}")
    if not agreement >= limits.agreement:
        found.append(f"agreement {100 * agreement:.2f} %, at least {100 * limits.agreement:g} %")
    if not abs(score) <= limits.score:
        found.append(f"score differs by {score:+.2f} points, at most {limits.score:g}")
    return found
