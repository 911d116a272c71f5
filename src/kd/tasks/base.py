"""What a task is to the rest of kd: head, label loss, divergence, metrics, and how a prediction reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kd.units import RowUnits, Units

Decision = Mapping[str, float]  # what a task finds out on validation and an artefact keeps, such as a threshold
RESAMPLES = 200  # of the rows, for an interval that no formula gives


class Reader(Protocol):
    """A model that predicts, as tasks see it: ``kd.artefact.Artefact``."""

    model: Any
    tokenizer: Any
    max_length: int

    def logits(self, texts: Sequence[Any]) -> Tensor: ...


class Task:
    """One kind of output. ``select`` names the metric that picks a checkpoint and is the score.

    ``label_names`` are the data's; ``outputs`` the names of the head's logits, the same unless a task says otherwise.
    Logits are ``[N, C]`` and labels ``[N, ...]`` of N units (kd.units): rows, words or masked tokens.
    """

    select: str
    unit = "rows"  # what has a label, for people
    softens = False  # logits stand for probabilities: there are ``log_probabilities``
    exclusive = False  # and one of the outputs is right, so that there is one distribution
    scale = 1.0  # of logits, where they are compared as numbers
    higher_is_better = True  # of ``select``
    labelled = True  # the data bring labels
    labels_are_kinds = False  # rows are of one kind, or not: their labels are equal or not
    learns = True  # there is a label loss; else a teacher is taken as it is
    scored_against_teacher = False  # what metrics get as labels are the teacher's logits
    label_formula: str  # what label_loss is for one unit, for people
    divergence_formula: str  # likewise; {T} stands for the temperature
    same_tokens = False  # teacher and student must read the same tokens, also to compare their logits

    def __init__(self, label_names: Sequence[str]) -> None:
        self.label_names = list(label_names)

    @property
    def outputs(self) -> list[str]:
        return self.label_names

    def auto_class(self) -> Any:
        """The transformers Auto class that has the head."""
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def config_fields(self) -> dict[str, Any]:
        """What the model's config must say about this task."""
        return {
            "num_labels": len(self.outputs),
            "id2label": dict(enumerate(self.outputs)),
            "label2id": {name: i for i, name in enumerate(self.outputs)},
            **({"problem_type": self.problem_type} if self.problem_type else {}),
        }

    problem_type: str | None = None

    def settings(self) -> dict[str, Any]:
        """What, beside kind and labels, determines the weights that are trained for this task."""
        return {}

    def units(self, encodings: Mapping[str, Any], tokenizers: Mapping[str, Any], seed: int) -> Units:
        """What has a label in the encoded rows."""
        return RowUnits(encodings, tokenizers, seed)

    def prepare(self, data: Any) -> Any:
        """The TextData as the task reads it, before anything else sees it."""
        return data

    def follow(self, teacher: Any) -> None:
        """Looks at the teacher that is there, before the student is made."""

    def see(self, labels: Sequence[Any]) -> None:
        """Looks at the training labels before any model is made. Raises UserError if they are not of this kind."""

    def start_head(self, head: nn.Linear) -> None:
        """A new head's first weights; as transformers draws them unless a task knows better."""

    def label_loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Sum and count of the loss against the labels."""
        raise NotImplementedError

    def divergence(self, student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Sum and count of what logit distillation means for this kind of output."""
        raise NotImplementedError

    def log_probabilities(self, logits: Tensor, temperature: float | Tensor) -> Tensor:
        """``[N, D, K]``: of logits ``[N, C]`` at a temperature, or one a unit, the logarithms of D independent
        distributions of K outcomes each; if the task ``softens``.
        """
        raise NotImplementedError

    def digest(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What scoring keeps of logits ``[N, C]`` and hands to all that follows: themselves, where C is small."""
        return logits

    def decide(self, logits: Tensor, labels: Tensor) -> Decision:
        """What predictions need beside the logits, found on validation."""
        return {}

    def metrics(self, decision: Decision | None = None) -> MetricCollection:
        """Of logits and labels. Without a ``decision``, as while training, each finds its own."""
        raise NotImplementedError

    def extra(self, split: str, logits: Tensor) -> dict[str, float]:
        """Figures of a split's logits, rows in order, beside the metrics."""
        return {}

    def about(self, models: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        """Lines of the report beside its table, from the figures of each model."""
        return {}

    def answers(self, logits: Tensor, decision: Decision) -> Tensor:
        """The prediction of each row, for ``agreement``."""
        raise NotImplementedError

    def agreement(self, student: Tensor, teacher: Tensor) -> float:
        """Share of rows on which two models give the same answer."""
        same = student == teacher
        return float(same.reshape(len(same), -1).all(-1).float().mean())

    def same(self, answers: Tensor, reference: Tensor) -> float:
        """As ``agreement``, of two versions of one model, where also a shift or another scale is a difference."""
        return self.agreement(answers, reference)

    def spread(self, logits: Tensor) -> float:
        """What a difference of logits is measured in: 1, or, in the data's own units, how far these lie apart."""
        return 1.0

    def chance(self, labels: Tensor) -> tuple[float, str]:
        """The score that needs no model, and what it stands for."""
        raise NotImplementedError

    def interval(self, score: float, logits: Tensor, labels: Tensor, decision: Decision) -> tuple[float, float]:
        """A 95 % interval of the score: the percentile bootstrap over rows (Efron 1979)."""
        generator = torch.Generator().manual_seed(0)
        found = []
        for _ in range(RESAMPLES):
            rows = torch.randint(len(labels), (len(labels),), generator=generator)
            metric = self.metrics(decision)[self.select]
            metric.update(logits[rows], labels[rows])
            found.append(float(metric.compute()))
        low, high = torch.tensor(found).nan_to_num(0.0).quantile(torch.tensor([0.025, 0.975])).tolist()
        return low, high

    def beats_chance(self, score: float, logits: Tensor, labels: Tensor, decision: Decision) -> bool:
        low, high = self.interval(score, logits, labels, decision)
        chance = self.chance(labels)[0]
        return low > chance if self.higher_is_better else high < chance

    def retention(self, score: float, teacher: float) -> float:
        """The score as a share of the teacher's; below 1 is worse, also where lower scores are better."""
        if score == teacher:
            return 1.0
        share, whole = (score, teacher) if self.higher_is_better else (teacher, score)
        return share / whole if whole else 0.0

    def describe(self, logits: Tensor, decision: Decision) -> list[dict[str, Any]]:
        """Predictions for people: one dict a row with ``label`` and perhaps ``probabilities`` by name."""
        raise NotImplementedError

    def predict(self, reader: Reader, texts: Sequence[Any], decision: Decision) -> list[dict[str, Any]]:
        """One dict a text, or pair; ``reader`` is the model with its tokenizer."""
        return self.describe(reader.logits(texts), decision)

    def example(self, tokenizer: Any, pairs: bool) -> str:
        """What ``predict`` could be given, as it is written in Python."""
        return '[("a text", "another")]' if pairs else '"a text"'

    def note(self, decision: Decision) -> str:
        """What a model card has to say about reading the answers; empty if they are as everybody expects."""
        return ""

    def stored(self) -> dict[str, Any]:
        """What ``kd.tasks.restored`` makes the task from again."""
        return {"kind": type(self).__name__, "label_names": self.label_names}


def count_of(logits: Tensor) -> Tensor:
    """The number of rows, as a tensor on the same device."""
    return torch.full((), float(len(logits)), device=logits.device)
