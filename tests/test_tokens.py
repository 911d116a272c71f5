"""Token classification, against seqeval."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from seqeval.metrics import f1_score, precision_score, recall_score
from torch import Tensor

from kd.tasks import TokenClassification
from kd.tasks.base import RESAMPLES
from kd.tasks.tokens import EntityF1, Tags

NAMES = ["O", "B-group", "I-group", "B-creative-work", "I-creative-work", "I-place", "B-place"]
Rows = list[list[str]]
THEIRS = {"f1": f1_score, "precision": precision_score, "recall": recall_score}


def drawn(draw: random.Random, rows: int, longest: int = 9) -> tuple[Rows, Rows]:
    """Real and guessed tags; some guesses are right, and any tag may follow any other."""
    real = [[draw.choice(NAMES) for _ in range(draw.randint(1, longest))] for _ in range(rows)]
    return real, [[tag if draw.random() < 0.6 else draw.choice(NAMES) for tag in row] for row in real]


def tensors(real: Rows, guessed: Rows) -> tuple[Tensor, Tensor]:
    labels = [[NAMES.index(tag), int(i == 0)] for row in real for i, tag in enumerate(row)]
    logits = torch.nn.functional.one_hot(torch.tensor([NAMES.index(tag) for row in guessed for tag in row]), len(NAMES))
    return logits.float(), torch.tensor(labels)


def theirs(real: Rows, guessed: Rows) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of figures without a denominator, which are 0
        return {name: float(score(real, guessed)) for name, score in THEIRS.items()}


def ours(*batches: tuple[Rows, Rows]) -> dict[str, float]:
    task = TokenClassification(NAMES)
    metrics = task.metrics()
    for real, guessed in batches:
        metrics.update(*tensors(real, guessed))
    return {name: float(value) for name, value in metrics.compute().items()}


def test_entities_are_counted_as_seqeval_counts_them() -> None:
    """500 draws: I- without B-, kinds that change within an entity, rows of one word, rows that end in an entity."""
    draw = random.Random(0)
    for _ in range(500):
        real, guessed = drawn(draw, draw.randint(1, 6), draw.choice([1, 2, 9]))
        found = ours((real, guessed))
        assert {name: found[name] for name in THEIRS} == pytest.approx(theirs(real, guessed), abs=1e-6)
        words = [tag for row in real for tag in row], [tag for row in guessed for tag in row]
        assert found["word_accuracy"] == pytest.approx(np.mean([a == b for a, b in zip(*words, strict=True)]))


def test_batches_add_up() -> None:
    draw = random.Random(1)
    parts = [drawn(draw, rows) for rows in (3, 1, 8)]
    whole = [row for real, _ in parts for row in real], [row for _, guessed in parts for row in guessed]
    assert ours(*parts) == pytest.approx(ours(whole))
    assert ours(*parts)["f1"] == pytest.approx(theirs(*whole)["f1"], abs=1e-6)


@pytest.mark.parametrize(
    ("real", "guessed"),
    [
        ([["O", "O"]], [["O", "O"]]),  # nothing there, nothing guessed
        ([["O", "O"]], [["I-place", "O"]]),
        ([["I-place", "O"]], [["O", "O"]]),
        ([["I-place"], ["I-place"]], [["B-place"], ["I-place"]]),  # one entity a row, however it is written
        ([["B-place", "B-place"]], [["B-place", "I-place"]]),
        ([["B-place", "I-group", "I-group"]], [["B-place", "B-group", "I-group"]]),
        ([["B-group", "I-group"], ["I-group", "O"]], [["B-group", "I-group"], ["O", "O"]]),  # none goes on over rows
    ],
)
def test_cases_that_are_easily_counted_wrong(real: Rows, guessed: Rows) -> None:
    found = ours((real, guessed))
    assert {name: found[name] for name in THEIRS} == pytest.approx(theirs(real, guessed))


def test_the_interval_is_the_bootstrap_over_rows() -> None:
    """With the same draws of rows, seqeval gives the same quantiles."""
    draw = random.Random(2)
    real, guessed = drawn(draw, 30)
    task, (logits, labels) = TokenClassification(NAMES), tensors(real, guessed)
    score = theirs(real, guessed)["f1"]
    low, high = task.interval(score, logits, labels, {})
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(30, (RESAMPLES, 30), generator=generator).tolist()
    again = [theirs([real[i] for i in one], [guessed[i] for i in one])["f1"] for one in rows]
    assert (low, high) == pytest.approx(tuple(np.quantile(again, [0.025, 0.975])), abs=1e-6)
    assert 0 < low < score < high < 1
    assert task.beats_chance(score, logits, labels, {})
    more = tensors(real * 9, guessed * 9)
    narrow = task.interval(score, *more, {})
    assert (narrow[1] - narrow[0]) < 0.5 * (high - low)
    nothing = tensors(real, [["O"] * len(row) for row in real])
    assert task.interval(0.0, *nothing, {}) == (0.0, 0.0)
    assert not task.beats_chance(0.0, *nothing, {})


def test_counts_of_several_ranks_add_up() -> None:
    draw = random.Random(3)
    (one, two), whole = (drawn(draw, 4), drawn(draw, 5)), EntityF1(NAMES, "f1")
    parts = [EntityF1(NAMES, "f1") for _ in range(2)]
    for metric, part in zip(parts, (one, two), strict=True):
        metric.update(*tensors(*part))
        whole.update(*tensors(*part))
    parts[0].counts += parts[1].counts  # what Lightning does over ranks
    assert float(parts[0].compute()) == float(whole.compute())


def test_words_and_their_losses_are_sums() -> None:
    draw = random.Random(4)
    task, (logits, labels) = TokenClassification(NAMES), tensors(*drawn(draw, 6))
    teacher = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    both: list[Callable[[slice], tuple[Tensor, Tensor]]] = [
        lambda rows: task.label_loss(logits[rows], labels[rows]),
        lambda rows: task.divergence(logits[rows], teacher[rows], 2.0),
    ]
    for loss in both:
        whole, count = loss(slice(None))
        parts = [loss(slice(0, 5)), loss(slice(5, None))]
        assert float(whole) == pytest.approx(sum(float(value) for value, _ in parts), rel=1e-5)
        assert int(count) == sum(int(count) for _, count in parts) == len(labels)


def test_what_is_named_is_what_is_counted() -> None:
    """Predictions for people and the score find the same entities."""
    from seqeval.metrics.sequence_labeling import get_entities

    draw = random.Random(5)
    task = TokenClassification(NAMES)
    for _ in range(100):
        (tags,), _ = drawn(draw, 1)
        words = [f"w{i}" for i in range(len(tags))]
        found: list[dict[str, Any]] = task.named(words, tags)
        assert [(one["type"], one["first_word"], one["last_word"]) for one in found] == get_entities(tags)
        assert [one["text"].split()[0] for one in found] == [f"w{first}" for _, first, _ in get_entities(tags)]
    assert task.named([], []) == []
    assert Tags(["O"]).kind.tolist() == [0]
