"""A mean is one over the global batch: over all ranks and accumulated batches, for whatever a task has labels for."""

from __future__ import annotations

import csv
import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import TWO_RANKS, train
from conftest import architecture
from datasets import Dataset
from test_lit_module import Gradients, settings
from words import TAGS, raw, store, tagged, text_data, word_pieces

from kd.batches import Draw
from kd.datamodule import TextDataModule
from kd.errors import UserError
from kd.fit import Fitted, fit
from kd.lit_module import FrozenTeacher
from kd.losses import HardLabelLoss, HiddenLoss, Loss, PatientLoss, SoftTargetLoss
from kd.models import random_model
from kd.sources import TextData
from kd.tasks import Classification, MaskedLM, Multilabel, Ordinal, Regression, Task, TokenClassification
from kd.units import UNLABELLED

TOKENIZER = word_pieces()
NAMES = ["a", "b", "c"]


def labelled(rows: int, seed: int, draw_label: Callable[[random.Random], Any]) -> Any:
    draw = random.Random(seed)
    return raw(rows, seed).add_column("label", [draw_label(draw) for _ in range(rows)])


def texts(name: str, draw_label: Callable[[random.Random], Any]) -> TextData:
    splits = {
        split: labelled(rows, seed, draw_label) for split, rows, seed in (("train", 64, 0), ("validation", 24, 1))
    }
    return TextData(name, splits, NAMES, f"totals-{name}")


def one_of_three(draw: random.Random) -> int:
    return draw.randrange(3)


def any_of_three(draw: random.Random) -> list[float]:
    return [float(draw.random() < 0.5) for _ in NAMES]


def number(draw: random.Random) -> float:
    return draw.gauss(3.0, 2.0)


CASES: dict[str, tuple[Callable[[], Task], Callable[[], TextData]]] = {
    "classification": (lambda: Classification(NAMES), lambda: texts("one", one_of_three)),
    "multilabel": (lambda: Multilabel(NAMES), lambda: texts("any", any_of_three)),
    "regression": (lambda: Regression(["x"]), lambda: texts("number", number)),
    "ordinal": (lambda: Ordinal(NAMES), lambda: texts("levels", one_of_three)),
    "token_classification": (lambda: TokenClassification(TAGS), lambda: text_data(tagged, TAGS)),
    "masked_lm": (MaskedLM, lambda: text_data(raw, [])),
    "masked_lm_all": (lambda: MaskedLM(compare="all"), lambda: text_data(raw, [])),
}


def case(name: str, cache: Path, size: int, limit: int | None = None) -> tuple[Task, TextDataModule]:
    make_task, make_data = CASES[name]
    task, data = make_task(), make_data()
    if task.labelled:
        task.see(data.splits["train"]["label"])
    tokenizers = {"student": TOKENIZER, "teacher": TOKENIZER}
    return task, TextDataModule(data, tokenizers, cache, size, 40, limit, units=task.units)


def distil(task: Task, data: TextDataModule, directory: Path, accumulate: int) -> tuple[Fitted, Gradients]:
    made: Any = functools.partial(architecture, vocab_size=len(TOKENIZER))
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(0)
    student = random_model(made(2, 32, **none), task, TOKENIZER)
    teacher = random_model(made(3, 32), task, TOKENIZER)
    losses: dict[str, Loss] = {
        "hard": HardLabelLoss(0.5), "soft": SoftTargetLoss(0.5, 2.0), "patient": PatientLoss(1.0, "skip"),
        "hidden": HiddenLoss(1.0, "uniform"),
    }  # fmt: skip
    for loss in losses.values():
        loss.setup(student.config, teacher.config, task)
    frozen = FrozenTeacher(teacher, tuple(one for loss in losses.values() for one in loss.teacher_signals))
    how, gradients = settings(3, accumulate_grad_batches=accumulate), Gradients()
    return fit(student, task, losses, frozen, data, how, directory, "key", "test", callbacks=[gradients]), gradients


@pytest.mark.parametrize("name", CASES)
def test_accumulated_parts_are_one_batch(name: str, tmp_path: Path) -> None:
    """Three steps of plain SGD on 16 rows, which differ in tokens, words and masks: the gradients are the same,
    and those of the means that are logged."""
    found = []
    for size, accumulate in ((16, 1), (8, 2), (6, 3)):  # the last: of 6, 6 and 4 rows
        task, data = case(name, tmp_path / "cache", size, limit=16)
        fitted, gradients = distil(task, data, tmp_path / str(size), accumulate)
        logged = [value for _, value in fitted.curves["train/loss"]]  # made of the terms' own counts
        assert gradients.losses == pytest.approx(logged, rel=1e-5)
        found.append((gradients, fitted.curves))
    (gradients, curves), *others = found
    for again, same in others:
        gradients.check_same(again)
        for key, curve in curves.items():
            assert [value for _, value in same[key]] == pytest.approx([value for _, value in curve], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_totals_are_the_counts_of_what_the_batches_of_a_step_hold(
    name: str, ranks: int, accumulate: int, tmp_path: Path
) -> None:
    _, data = case(name, tmp_path, size=5)
    drawn = [list(data.batches(rank, ranks, accumulate)) for rank in range(ranks)]
    checked = 0
    for start in range(0, len(drawn[0]), accumulate):
        step = [draw for batches in drawn for draw in batches[start : start + accumulate]]
        held = {"examples": 0, "tokens": 0, "labels": 0, "logits": 0}
        for draw in step:
            batch = data.splits["train"][draw]
            student = batch["student"]
            places = student.get("places")
            held["examples"] += len(draw.rows)
            held["tokens"] += int(student["attention_mask"].sum())
            held["labels"] += labels_of(batch["labels"])
            held["logits"] += len(draw.rows) if places is None else len(places)
            if places is not None:
                assert len(places) == len(batch["labels"]) == len(batch["teacher"]["places"])
        for draw in step:
            assert draw.totals == held
            assert data.splits["train"][draw]["totals"] == held
        checked += held["examples"]
    assert checked == 64


def labels_of(labels: torch.Tensor) -> int:
    """Rows, words, or masked tokens."""
    return int((labels != UNLABELLED).sum()) if labels.dtype == torch.long and labels.ndim == 1 else len(labels)


def test_a_step_without_any_label_divides_by_one(tmp_path: Path) -> None:
    """A text whose words the tokenizer makes nothing of has none."""
    task = TokenClassification(TAGS)
    rows = Dataset.from_dict({"tokens": [["\u200d", ""], ["bank", "walks"]], "label": [[0, 1], [1, 2]]})
    data = TextDataModule(
        TextData("nothing", {"train": rows, "validation": rows}, TAGS, "nothing"), {"student": TOKENIZER}, tmp_path,
        1, 20, units=task.units,
    )  # fmt: skip
    draw = next(draw for draw in data.batches() if draw.rows == [0])
    assert isinstance(draw, Draw)
    assert (draw.totals["labels"], draw.totals["logits"]) == (1, 1)
    batch = data.splits["train"][draw]
    value, count = task.label_loss(torch.zeros(0, len(TAGS)), batch["labels"])
    assert (float(value), int(count)) == (0.0, 0)
    scores = task.metrics()
    scores.update(torch.zeros(0, len(TAGS)), batch["labels"])  # as a batch of such rows alone is scored
    nothing = Dataset.from_dict({"tokens": [["\u200d"]], "label": [[0]]})
    with pytest.raises(UserError, match="Of 1 rows no word is read"):
        TextDataModule(
            TextData("none", {"train": rows, "validation": nothing}, TAGS, "none"), {"student": TOKENIZER}, tmp_path,
            1, 20, units=task.units,
        )  # fmt: skip


def metrics(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


ON_DISK: dict[str, tuple[dict[str, str], Any]] = {
    "wnut17": ({"tokens": "tokens", "label": "ner_tags"}, tagged),
    "wikipedia": ({"text": "text"}, raw),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "lines"),
    [("wnut17", []), ("wikipedia", ["data.masked_lm.compare=all"])],  # all: other places than have labels
)
def test_two_ranks_are_one_rank_with_the_double_batch(name: str, lines: list[str], tmp_path: Path) -> None:
    """Of 90 rows the last batch has 10; how many words, or masks, each rank has is never the same."""
    columns, make = ON_DISK[name]
    directory = {"wnut17": "wnut17", "wikipedia": "wikipedia_en_sample"}[name]
    store(tmp_path / "store" / "data" / directory, columns, make)
    made = architecture(3, 32, vocab_size=len(TOKENIZER))
    random_model(made, MaskedLM(), TOKENIZER).base_model.save_pretrained(tmp_path / "teacher")
    TOKENIZER.save_pretrained(tmp_path / "teacher")
    shape = {**architecture(2, 32), "vocab_size": len(TOKENIZER)}
    del made["model_type"], shape["model_type"]
    common = [
        f"data={name}", *lines, "data.max_length=60", "teacher=bert_small", f"teacher.weights={tmp_path / 'teacher'}",
        *(f"teacher.architecture.{key}={value}" for key, value in made.items()), "teacher.fine_tune.when=never",
        "teacher.gate=false", "student=bert_tiny", "student.weights=random",
        *(f"student.overrides.{key}={value}" for key, value in shape.items()),
        *(f"student.overrides.{key}=0.0" for key in ("hidden_dropout_prob", "attention_probs_dropout_prob")),
        "method=feature", "method.hidden.weight=0.1", "trainer.max_epochs=2", "trainer.log_every_n_steps=1",
        "optimizer.lr=1e-3", "report.measure=false", "logger=csv",
    ]  # fmt: skip
    found = []
    for run, more in (("one", ["trainer=cpu", "data.batch_size=16"]), ("two", [*TWO_RANKS, "data.batch_size=8"])):
        done = train(tmp_path, *common, *more, f"hydra.run.dir={tmp_path / run}", KD_STORE=str(tmp_path / "store"))
        assert done.returncode == 0, done.stderr
        found.append(metrics(tmp_path / run))
    one, two = found
    assert len(one) == len(two) > 6
    assert {"train/loss/hard", "train/loss/soft", "train/loss/hidden", "train/grad_norm"} <= set(one[0])
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5)
