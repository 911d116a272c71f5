"""A training that ends anywhere and goes on is the training that did not end: weights, logs and bookkeeping."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import model
from lightning.pytorch.callbacks import Callback
from test_lit_module import settings

from kd.checkpoint import LAST, steps_done, steps_logged
from kd.datamodule import TextDataModule
from kd.errors import Preempted, UserError
from kd.fit import Fitted, fit
from kd.last_state import LastState
from kd.lit_module import DistillationModule
from kd.loggers import csv_logger
from kd.losses import HardLabelLoss
from kd.sources import TextData
from kd.tasks import Classification


class Killed(BaseException):
    """What nobody catches, as kill -9."""


class Watch(Callback):
    """Keeps the weights of the last step, before the best are put back; ends the training where it is told to."""

    def __init__(self, ends: Callable[[L.Trainer], bool] | None) -> None:
        self.ends = ends
        self.weights: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.ends is not None and self.ends(trainer):
            raise Killed

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.weights = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}


def training(
    text: TextData, directory: Path, ends: Callable[[L.Trainer], bool] | None = None, workers: int = 0, rows: int = 64,
    fields: dict[str, Any] | None = None, seconds: float = 0.0, callbacks: tuple[Callback, ...] = (), **trainer: Any,
) -> tuple[Fitted, dict[str, torch.Tensor]]:  # fmt: skip
    cache = directory.parent / "cache"
    data = TextDataModule(text, {"student": text.tokenizer}, cache, 8, 32, rows, num_workers=workers)
    how = settings()
    how.trainer = how.trainer | {"max_epochs": 3, "max_steps": -1, "log_every_n_steps": 1} | trainer
    how.checkpoint_seconds = seconds
    student, task, loss = model(**fields or {}), Classification(["negative", "positive"]), HardLabelLoss(weight=1.0)
    loss.setup(student.config, student.config, task)
    watch = Watch(ends)
    loggers = [csv_logger(directory, steps_logged(directory))]
    fitted = fit(
        student, task, {"hard": loss}, None, data, how, directory, "key", "test", loggers, [*callbacks, watch]
    )  # fmt: skip
    return fitted, watch.weights


CASES: dict[str, tuple[Callable[[L.Trainer], bool], dict[str, Any]]] = {
    "in the second epoch": (lambda t: t.global_step == 13, {}),
    "at an epoch's last step": (lambda t: t.global_step == 16, {}),
    "at an epoch's first step": (lambda t: t.global_step == 9, {}),
    "between accumulated batches": (
        lambda t: t.global_step == 4 and t.fit_loop.epoch_loop.batch_progress.current.ready == 5,
        {"accumulate_grad_batches": 3},
    ),
    "with workers": (lambda t: t.global_step == 13, {"workers": 1}),
    "at max_steps": (lambda t: t.global_step == 13, {"max_steps": 13}),
    "before max_steps": (lambda t: t.global_step == 12, {"max_steps": 13}),
}


@pytest.mark.parametrize("case", CASES)
def test_killed_and_gone_on(text: TextData, tmp_path: Path, case: str) -> None:
    ends, how = CASES[case]
    alone, weights = training(text, tmp_path / "alone", **how)
    with pytest.raises(Killed):
        training(text, tmp_path / "killed", ends, **how)
    assert 0 < steps_done(tmp_path / "killed") < alone.steps
    resumed, again = training(text, tmp_path / "killed", **how)
    for name, tensor in weights.items():
        assert torch.equal(again[name], tensor), name
    for name, tensor in alone.module.state_dict().items():  # the best ones
        assert torch.equal(resumed.module.state_dict()[name], tensor), name
    assert (resumed.steps, resumed.best_score, resumed.curves) == (alone.steps, alone.best_score, alone.curves)
    assert (tmp_path / "killed" / "metrics.csv").read_bytes() == (tmp_path / "alone" / "metrics.csv").read_bytes()


class Terminates(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("step", "rows", "saved"), [(5, 64, 5), (8, 64, 8), (2, 8, 2)])
def test_sigterm_saves_also_after_an_epoch(text: TextData, tmp_path: Path, step: int, rows: int, saved: int) -> None:
    """Of 8 steps an epoch: within it, at its end; and with one step an epoch."""
    _, weights = training(text, tmp_path / "alone", rows=rows, seconds=1e9)
    with pytest.raises(Preempted) as ended:
        training(text, tmp_path / "ended", rows=rows, seconds=1e9, callbacks=(Terminates(step),))
    assert ended.value.step == saved == steps_done(tmp_path / "ended")
    _, again = training(text, tmp_path / "ended", rows=rows, seconds=1e9)
    for name, tensor in weights.items():
        assert torch.equal(again[name], tensor), name
    assert (tmp_path / "ended" / "metrics.csv").read_bytes() == (tmp_path / "alone" / "metrics.csv").read_bytes()


def test_sigterm_in_the_last_step_is_not_forgotten(text: TextData, tmp_path: Path) -> None:
    with pytest.raises(Preempted) as ended:
        training(text, tmp_path / "run", callbacks=(Terminates(24),))
    assert ended.value.step == steps_done(tmp_path / "run") > 0


def test_nothing_stays_behind_in_the_process(text: TextData, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    for name in ("a", "b"):
        training(text, tmp_path / name, max_epochs=1)
        assert signal.getsignal(signal.SIGTERM) is before
    gc.collect()
    assert [found for found in gc.get_objects() if isinstance(found, DistillationModule | L.Trainer)] == []


def test_the_best_weights_stay_as_long_as_the_last_state_speaks_of_them(
    text: TextData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A better epoch removed the best checkpoint after the last saving; on another machine that epoch is no better."""
    scores = iter([0.6, 0.7, 0.5, 0.4])
    log = DistillationModule.log_dict

    def scored(self: Any, values: dict[str, Any], **more: Any) -> None:
        log(self, values | ({"val/accuracy": next(scores)} if "val/accuracy" in values else {}), **more)

    monkeypatch.setattr(DistillationModule, "log_dict", scored)
    save = LastState.save
    monkeypatch.setattr(LastState, "save", lambda self, t, m: save(self, t, m) if self.step == 9 else None)
    with pytest.raises(Killed):
        training(text, tmp_path / "run", lambda t: t.global_step == 18)
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {LAST, "best-step16.ckpt", "kept-best-step8.ckpt"}
    fitted, _ = training(text, tmp_path / "run")
    assert fitted.best_score == pytest.approx(0.6)
    (tmp_path / "run" / "checkpoints" / "kept-best-step8.ckpt").unlink()
    (tmp_path / "run" / "checkpoints" / "best-step8.ckpt").unlink()
    scores = iter([0.5, 0.4])
    with pytest.raises(UserError, match="is missing, the best weights so far"):
        training(text, tmp_path / "run")


def test_a_log_that_was_cut_off_is_read_as_far_as_it_is_whole(text: TextData, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        training(text, tmp_path / "run", lambda t: t.global_step == 13)
    path = tmp_path / "run" / "metrics.csv"
    whole = path.read_text()
    assert whole.count("\n") > 10
    path.write_text(whole[: whole.rindex("\n", 0, -1)] + "\n1,")
    training(text, tmp_path / "run")
    training(text, tmp_path / "alone")
    assert path.read_text().splitlines()[:9] == (tmp_path / "alone" / "metrics.csv").read_text().splitlines()[:9]


def test_accumulated_batches_are_logged_as_one(text: TextData, tmp_path: Path) -> None:
    """The loss of a step is the mean over all its rows, not over those of its last batch."""
    no_dropout: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    parts, _ = training(text, tmp_path / "a", rows=32, fields=no_dropout, accumulate_grad_batches=2, max_steps=1)
    logged = parts.curves["train/loss/hard"][0][1]
    student, data = model(**no_dropout), parts.trainer.datamodule  # type: ignore[attr-defined]
    batches = list(data.loader("train", data.batches(accumulate=2)))[:2]
    with torch.no_grad():
        logits = torch.cat([student(**batch["student"]).logits for batch in batches])
    labels = torch.cat([batch["labels"] for batch in batches])
    whole, last = (float(torch.nn.functional.cross_entropy(logits[i:], labels[i:])) for i in (0, 8))
    assert logged == pytest.approx(whole, abs=1e-6)
    assert abs(whole - last) > 1e-5
