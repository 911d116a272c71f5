"""Batches that go through the models in parts, after an out-of-memory error."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from conftest import model
from lightning.pytorch.callbacks import Callback
from test_lit_module import set_up, settings

from kd import halving
from kd.batches import Batches
from kd.command_line import compose
from kd.contradictions import contradictions
from kd.datamodule import TextDataModule
from kd.errors import UserError
from kd.fit import Fitted, fit
from kd.lit_module import FrozenTeacher
from kd.losses import HardLabelLoss, HiddenLoss, SoftTargetLoss
from kd.sources import TextData
from kd.tasks import Classification

CALM: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def lengths(rows: int) -> Any:
    return np.arange(rows) % 7 + 3


@pytest.mark.parametrize(("rows", "size", "accumulate", "parts"), [(33, 8, 2, 4), (16, 8, 1, 2), (9, 8, 1, 16)])
def test_parts_are_the_batch(rows: int, size: int, accumulate: int, parts: int) -> None:
    whole = list(Batches(lengths(rows), size, seed=1, accumulate=accumulate))
    split = halving.Split(Batches(lengths(rows), size, seed=1, accumulate=accumulate), parts)
    drawn = list(split)
    assert len(drawn) == len(split) == len(whole) * parts
    for number, batch in enumerate(whole):
        mine = drawn[number * parts : (number + 1) * parts]
        counted = [draw for draw in mine if draw.totals == batch.totals]
        assert [row for draw in counted for row in draw.rows] == list(batch.rows)
        assert all(1 / total == 0 for draw in mine if draw not in counted for total in draw.totals.values())
        assert max(len(draw.rows) for draw in mine) == -(-len(batch.rows) // parts)


class Full(Callback):
    """An accelerator without memory for a whole batch, at one step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_backward(self, trainer: L.Trainer, pl_module: Any, loss: Any) -> None:
        if trainer.accumulate_grad_batches == 1 and trainer.global_step == self.step:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class Last(Callback):
    """The weights of the last step, and which steps were validated."""

    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}
        self.validated: list[int] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.validated.append(trainer.global_step)
        self.weights = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}


def trained(text: TextData, directory: Path, callbacks: list[Callback], seconds: float) -> Fitted:
    """33 rows in batches of 8: the last one has a single row, fewer than parts."""
    tokenizers = {"student": text.tokenizer, "teacher": text.tokenizer}
    data = TextDataModule(text, tokenizers, directory / "cache", batch_size=8, max_length=32, limit=33)
    student, teacher, task = model(2, 32, **CALM), model(2, 32, seed=1), Classification(["negative", "positive"])
    terms = {"hard": HardLabelLoss(0.5), "soft": SoftTargetLoss(0.5, 4.0), "hidden": HiddenLoss(1.0, "uniform")}
    losses = set_up(terms, student, teacher, task)
    signals = tuple(signal for loss in losses.values() for signal in loss.teacher_signals)
    how = replace(settings(12), checkpoint_seconds=seconds)

    def once(parts: int) -> Fitted:
        return fit(
            copy.deepcopy(student), task, losses, FrozenTeacher(teacher, signals), data, how, directory, "key", "test",
            callbacks=callbacks, parts=parts,
        )  # fmt: skip

    return halving.within_memory(once, directory, rows=8)


@pytest.mark.parametrize("seconds", [0.0, 300.0], ids=["from the last state", "from the start"])
def test_a_full_memory_halves_the_batch_and_changes_nothing_else(
    text: TextData, tmp_path: Path, seconds: float, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = Last(), Last()
    expected = trained(text, tmp_path / "whole", [ends[0]], 300.0)
    found = trained(text, tmp_path / "halved", [ends[1], Full(step=7)], seconds)
    assert "Going on with batches of 4 instead of 8 rows" in capsys.readouterr().out
    assert found.trainer.accumulate_grad_batches == 2
    assert found.steps == expected.steps == 12
    assert list(dict.fromkeys(ends[1].validated)) == ends[0].validated == [5, 10, 12]
    start = model(2, 32, **CALM).state_dict()
    for name, tensor in ends[0].weights.items():
        torch.testing.assert_close(ends[1].weights[name], tensor, atol=2e-5, rtol=1e-4)
    assert any((start[n.removeprefix("student.")] - t).abs().max() > 1e-2 for n, t in ends[0].weights.items())
    steps = [step for step, _ in found.curves["train/loss/hidden"]]
    assert steps == list(range(1, 13))
    mine, whole = (np.array([value for _, value in one.curves["train/loss/soft"]]) for one in (found, expected))
    np.testing.assert_allclose(mine, whole, rtol=1e-3, atol=2e-7)  # float32 has a cross-entropy near 0 to an ulp of 1
    assert (tmp_path / "halved" / "checkpoints" / "last.ckpt").is_file() == (seconds == 0.0)
    assert halving.parts_begun(tmp_path / "halved") == (2 if seconds == 0.0 else 1)


def test_what_cannot_be_halved_says_what_takes_less(tmp_path: Path) -> None:
    def train(parts: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(UserError, match="one row at a time .*student.gradient_checkpointing=true"):
        halving.within_memory(train, tmp_path, rows=8)
    with pytest.raises(UserError, match="data.batch_size=4 and twice"):
        halving.within_memory(train, tmp_path, rows=8, several_devices=True)
    with pytest.raises(UserError, match="data.tokens_per_batch=1024 and twice"):
        halving.within_memory(train, tmp_path, rows=8, several_devices=True, tokens=2048)

    def broken(parts: int) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        halving.within_memory(broken, tmp_path, rows=8)


def test_a_batch_of_tokens_has_more_rows_than_batch_size(text: TextData, tmp_path: Path) -> None:
    tokenizers = {"student": text.tokenizer}
    by_rows, by_tokens = (
        TextDataModule(text, tokenizers, tmp_path, batch_size=4, max_length=32, limit=64, tokens_per_batch=tokens)
        for tokens in (None, 256)
    )
    assert by_rows.most_rows == 4
    assert by_tokens.most_rows == max(len(draw.rows) for draw in by_tokens.batches()) > 8


def test_one_setting_says_how_large_a_batch_is() -> None:
    lines = ["experiment=demo", "paths.output=x", "data.batch_size=auto"]
    assert not contradictions(compose(lines))
    (found,) = contradictions(compose([*lines, "data.tokens_per_batch=256"]))
    assert "leave one of them out" in found
