"""A tag for each word of a text: entities, written as B-TYPE, I-TYPE and O (Ramshaw and Marcus 1995)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from kd.encoding import NO_TOKEN, Encode, pad
from kd.losses.functional import full
from kd.tasks.base import RESAMPLES, Decision, Reader, count_of
from kd.tasks.probabilities import Categorical
from kd.units import Units, WordUnits

BATCH = 32  # texts predicted together
OUTSIDE = 0  # the kind of O; others count from 1


class Tags:
    """From tags to entities: which tags begin one, and of what kind they are."""

    def __init__(self, names: Sequence[str]) -> None:
        kinds = sorted({name[2:] for name in names if name != "O"})
        self.kind = torch.tensor([OUTSIDE if name == "O" else 1 + kinds.index(name[2:]) for name in names])
        self.begins = torch.tensor([name.startswith("B-") for name in names])

    def entities(self, tags: Tensor, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of words ``[N]``, ``starts`` marking the first of a row: where an entity begins, its kind, its length.

        As conlleval and seqeval read them: an I- behind O or behind another kind begins an entity, too.
        """
        kind = self.kind.to(tags.device)[tags]
        before = F.pad(kind[:-1], (1, 0), value=OUTSIDE)
        begins = self.begins.to(tags.device)[tags] | (kind != before) | (starts > 0)
        begins &= kind != OUTSIDE
        piece = (begins | (kind == OUTSIDE)).cumsum(0)  # words that go on with an entity share its number
        return begins, kind, torch.bincount(piece, minlength=1)[piece]


class EntityF1(Metric):
    """Exact matches of entities, over all of them (micro); ``figure`` is f1, precision or recall. Ranks add up."""

    full_state_update = False
    higher_is_better = True
    counts: Tensor

    def __init__(self, names: Sequence[str], figure: str) -> None:
        super().__init__()
        self.tags, self.figure = Tags(names), figure
        self.add_state("counts", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        self.counts += torch.stack([found.sum() for found in matches(self.tags, logits, labels)])

    def compute(self) -> Tensor:
        return ratio(self.counts, self.figure)


def matches(tags: Tags, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each word, whether an entity begins that was found, one that was guessed, one that is there."""
    real, kind, length = tags.entities(labels[:, 0], labels[:, 1])
    guessed, guessed_kind, guessed_length = tags.entities(logits.argmax(-1), labels[:, 1])
    return real & guessed & (kind == guessed_kind) & (length == guessed_length), guessed, real


def ratio(counts: Tensor, figure: str) -> Tensor:
    """Of found, guessed and real entities ``[3, ...]``; 0 where nothing is and nothing was guessed."""
    found, guessed, real = counts
    whole = {"f1": (guessed + real) / 2, "precision": guessed, "recall": real}[figure]
    return torch.where(whole > 0, found / whole.clamp(min=0.5), 0.0)


class Accuracy(MulticlassAccuracy):
    """Of words."""

    def update(self, logits: Tensor, labels: Tensor) -> None:
        if len(labels):  # torchmetrics takes no empty batch
            super().update(logits, labels[:, 0])


class TokenClassification(Categorical):
    """Labels are ``[N, 2]``: each word's tag, and whether a row begins with it."""

    select = "f1"
    label_formula = "cross-entropy of the tag"
    divergence_formula = "T^2 KL(softmax(teacher / T) || softmax(student / T)), T = {T}, summed over tags"
    unit = "words"

    def auto_class(self) -> Any:
        from transformers import AutoModelForTokenClassification

        return AutoModelForTokenClassification

    def units(self, encodings: Mapping[str, Any], tokenizers: Mapping[str, Any], seed: int) -> Units:
        return WordUnits(encodings, tokenizers, seed)

    def label_loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy at the first token of each word: sum over words, and their number."""
        return F.cross_entropy(full(logits), labels[:, 0], reduction="sum"), count_of(logits)

    def metrics(self, decision: Decision | None = None) -> MetricCollection:
        scores: dict[str, Metric | MetricCollection] = {
            name: EntityF1(self.label_names, name) for name in ("f1", "precision", "recall")
        }
        scores["word_accuracy"] = Accuracy(len(self.label_names), average="micro")
        return MetricCollection(scores, compute_groups=False)

    def answers(self, logits: Tensor, decision: Decision) -> Tensor:
        return logits.argmax(-1)

    def chance(self, labels: Tensor) -> tuple[float, str]:
        return 0.0, "finding no entity"

    def interval(self, score: float, logits: Tensor, labels: Tensor, decision: Decision) -> tuple[float, float]:
        """The bootstrap over rows, since words of one text are not independent."""
        row = labels[:, 1].cumsum(0) - 1
        counts = torch.zeros(3, int(row[-1]) + 1, dtype=torch.float64)
        for sums, found in zip(counts, matches(Tags(self.label_names), logits, labels), strict=True):
            sums.index_add_(0, row, found.double())
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(counts.shape[1], (RESAMPLES, counts.shape[1]), generator=generator)
        low, high = ratio(counts[:, drawn].sum(-1), "f1").quantile(torch.tensor([0.025, 0.975]).double()).tolist()
        return low, high

    def note(self, decision: Decision) -> str:
        return (
            "A word's tag stands at its first token. kd splits a text at blanks alone, as `text.split()` does; give a "
            "list of words where the training data were split in another way, such as off punctuation."
        )

    def describe(self, logits: Tensor, decision: Decision) -> list[dict[str, Any]]:
        """One dict a word: its tag, with the probability."""
        chances, tags = full(logits).softmax(-1).max(-1)
        return [
            {"label": self.label_names[tag], "probability": chance}
            for tag, chance in zip(tags.tolist(), chances.tolist(), strict=True)
        ]

    @torch.no_grad()
    def predict(self, reader: Reader, texts: Sequence[Any], decision: Decision) -> list[dict[str, Any]]:
        """Of each text, or list of words: ``entities`` (text, type, first and last word), ``words`` and ``tags``."""
        split = [text.split() if isinstance(text, str) else list(text) for text in texts]
        found = []
        for start in range(0, len(split), BATCH):
            rows = split[start : start + BATCH]
            columns = Encode(reader.tokenizer, reader.max_length)({"tokens": rows})
            logits = reader.model(**pad(columns, reader.tokenizer.pad_token_id)).logits.float()
            found += [self.tagged(*one) for one in zip(rows, columns["places"], logits, strict=True)]
        return found

    def tagged(self, words: list[str], places: list[int], logits: Tensor) -> dict[str, Any]:
        """Words that were cut off, or that the tokenizer makes nothing of, are taken as O."""
        read = [word for word, place in enumerate(places) if place != NO_TOKEN]
        tags, chances = ["O"] * len(words), [1.0] * len(words)
        for word, row in zip(read, self.describe(logits[[places[word] for word in read]], {}), strict=True):
            tags[word], chances[word] = row["label"], row["probability"]
        found = self.named(words, tags)
        label = ", ".join(f"{one['text']} ({one['type']})" for one in found)
        return {"label": label, "entities": found, "words": words, "tags": tags, "tag_probabilities": chances}

    def named(self, words: list[str], tags: list[str]) -> list[dict[str, Any]]:
        if not words:
            return []
        numbers = torch.tensor([self.label_names.index(tag) for tag in tags])
        begins, _, lengths = Tags(self.label_names).entities(numbers, (torch.arange(len(words)) == 0).long())
        return [
            {
                "text": " ".join(words[i : i + length]), "type": tags[i][2:], "first_word": i,
                "last_word": i + length - 1,
            }
            for i, (begin, length) in enumerate(zip(begins.tolist(), lengths.tolist(), strict=True))
            if begin
        ]  # fmt: skip
