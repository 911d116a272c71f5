"""The training step, run through Lightning on tiny models."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import model
from lightning.pytorch.callbacks import Callback

from kd.datamodule import TextDataModule
from kd.errors import UserError
from kd.fit import FitSettings, Fitted, fit
from kd.lit_module import FrozenTeacher
from kd.losses import (
    AttentionKLLoss,
    AttentionScoreLoss,
    EmbeddingLoss,
    HardLabelLoss,
    HiddenLoss,
    Loss,
    PatientLoss,
    RelationLoss,
    SoftTargetLoss,
)
from kd.models import load_model
from kd.sources import TextData
from kd.tasks import Classification


def settings(steps: int = 4, **trainer: Any) -> FitSettings:
    options = {
        "accelerator": "cpu", "devices": 1, "strategy": "auto", "max_epochs": 50, "max_steps": steps,
        "precision": "32-true", "accumulate_grad_batches": 1, "gradient_clip_val": 1.0, "log_every_n_steps": 1,
    }  # fmt: skip
    return FitSettings(options | trainer, functools.partial(torch.optim.SGD, lr=0.1), "linear", 0.06, seed=0)


def set_up(losses: dict[str, Loss], student: Any, teacher: Any, task: Classification) -> dict[str, Loss]:
    for loss in losses.values():
        loss.setup(student.config, teacher.config, task)
    return losses


def every_loss() -> dict[str, Loss]:
    return {
        "hard": HardLabelLoss(0.5), "soft": SoftTargetLoss(0.5, 4.0), "patient": PatientLoss(1.0, "skip"),
        "hidden": HiddenLoss(1.0, "uniform"), "embedding": EmbeddingLoss(1.0),
        "relations": RelationLoss(1.0, "last", ["query", "key", "value"], 8),
        "attention": AttentionScoreLoss(1.0, "uniform"), "attention_kl": AttentionKLLoss(1.0, "last", "examples"),
    }  # fmt: skip


def distil(
    data: TextDataModule, tmp_path: Path, student: Any, teacher: Any, how: FitSettings | None = None,
    callbacks: tuple[Callback, ...] = (),
) -> Fitted:  # fmt: skip
    task = Classification(["negative", "positive"])
    losses = set_up(every_loss(), student, teacher, task)
    signals = tuple(signal for loss in losses.values() for signal in loss.teacher_signals)
    frozen = FrozenTeacher(teacher, signals)
    return fit(student, task, losses, frozen, data, how or settings(), tmp_path, "key", "test", callbacks=callbacks)


class Modes(Callback):
    def __init__(self) -> None:
        self.seen: list[tuple[bool, bool]] = []

    def on_before_backward(self, trainer: L.Trainer, pl_module: Any, loss: Any) -> None:
        self.seen.append((pl_module.student.training, pl_module.teacher.model.training))


class Gradients(Callback):
    """Of each step, before clipping. The weights that a fit leaves are the best ones, perhaps those of the start."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []
        self.losses: list[float] = []  # whose gradients these are, over the accumulated batches
        self.loss = 0.0

    def on_before_backward(self, trainer: L.Trainer, pl_module: Any, loss: Any) -> None:
        self.loss += float(loss.detach())

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        found = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None}
        self.steps.append(found)
        self.losses.append(self.loss)
        self.loss = 0.0

    def check_same(self, other: Gradients) -> None:
        assert len(self.steps) == len(other.steps) == 3
        for one, two in zip(self.steps, other.steps, strict=True):
            assert set(one) == set(two)
            assert max(float(tensor.abs().max()) for tensor in one.values()) > 0.1  # far more than the tolerance
            for name, tensor in one.items():
                torch.testing.assert_close(tensor, two[name], atol=2e-5, rtol=1e-4)
        first, last = self.steps[0], self.steps[-1]
        assert any(not torch.allclose(first[name], last[name], atol=1e-2) for name in first)  # weights moved


def test_teacher_is_untouched_and_in_no_checkpoint(data: TextDataModule, tmp_path: Path) -> None:
    student, teacher = model(2, 32), model(3, 48, seed=1)
    before = copy.deepcopy(teacher.state_dict())
    modes = Modes()
    fitted = distil(data, tmp_path, student, teacher, settings(20), (modes,))
    assert fitted.steps == 20
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert modes.seen == [(True, False)] * 20
    (checkpoint,) = (tmp_path / "checkpoints").glob("*.ckpt")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in state} == {"student", "losses"}
    assert not any("teacher" in name for name in state)
    optimized = {id(p) for group in fitted.trainer.optimizers[0].param_groups for p in group["params"]}
    assert not optimized & {id(p) for p in teacher.parameters()}
    projections = [name for name in state if name.startswith("losses")]
    assert len(projections) == 1 + 2 + 1  # patient, hidden, embedding: widths differ


def test_student_learns(data: TextDataModule, tmp_path: Path) -> None:
    fitted = distil(data, tmp_path, model(2, 32), model(2, 32, seed=1), settings(40))
    curve = [value for _, value in fitted.curves["train/loss"]]
    assert sum(curve[-5:]) < sum(curve[:5])
    assert set(fitted.curves) == {"train/loss", *(f"train/loss/{name}" for name in every_loss())}


def test_two_accumulated_halves_are_one_batch(text: TextData, tmp_path: Path) -> None:
    """Also with token means and rows of unequal length: the totals are those of the whole step."""
    found = []
    for size, accumulate in ((16, 1), (8, 2)):
        tokenizers = {"student": text.tokenizer, "teacher": text.tokenizer}
        data = TextDataModule(text, tokenizers, tmp_path / "cache", batch_size=size, max_length=32, limit=16)
        student = model(2, 32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        teacher = model(3, 32, seed=1)
        how = settings(3, accumulate_grad_batches=accumulate)
        found.append(Gradients())
        distil(data, tmp_path / str(size), student, teacher, how, (found[-1],))
    found[0].check_same(found[1])


def test_padding_changes_no_loss(data: TextDataModule) -> None:
    student, teacher = model(2, 32), model(3, 32, seed=1)
    task = Classification(["negative", "positive"])
    losses = set_up(every_loss(), student, teacher, task)
    from kd.batches import Draw
    from kd.signals import Recorder

    rows = list(range(8))
    batch = data.splits["train"][Draw(rows, {})]
    found = []
    for length in (32, 48):
        padded = dict(batch)
        for role in ("student", "teacher"):
            padded[role] = {
                name: torch.nn.functional.pad(tensor, (0, length - tensor.shape[1]), value=0)
                for name, tensor in batch[role].items()
            }
            if length == 48:  # whatever stands in padded places
                ids, mask = padded[role]["input_ids"], padded[role]["attention_mask"]
                padded[role]["input_ids"] = torch.where(mask == 1, ids, torch.randint_like(ids, 5, 100))
        signals = {
            role: Recorder(m, [s for loss in losses.values() for s in getattr(loss, f"{role}_signals")])(**padded[role])
            for role, m in (("student", student), ("teacher", teacher))
        }
        found.append(
            [float(loss(signals["student"], signals["teacher"], padded)[0].detach()) for loss in losses.values()]
        )
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_a_float16_checkpoint_trains_in_float32(data: TextDataModule, tmp_path: Path, task: Classification) -> None:
    model(3, 32, seed=1).half().save_pretrained(tmp_path / "half")
    teacher = load_model(tmp_path / "half", task).model
    student = load_model(tmp_path / "half", task).model
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    distil(data, tmp_path, student, teacher)
    assert {p.dtype for p in student.parameters()} == {torch.float32}


def test_a_loss_that_is_no_number_stops_with_step_and_term(data: TextDataModule, tmp_path: Path) -> None:
    class Poison(Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 2:
                pl_module.teacher.model.classifier.weight.data.fill_(float("nan"))

    with pytest.raises(UserError, match=r"term 'soft' was not a finite number at step 3"):
        distil(data, tmp_path, model(2, 32), model(2, 32, seed=1), settings(20, log_every_n_steps=5), (Poison(),))
    assert not list((tmp_path / "checkpoints").glob("*")) if (tmp_path / "checkpoints").exists() else True


@pytest.mark.parametrize("steps", [3, 8, 11])
def test_the_last_step_is_validated(data: TextDataModule, tmp_path: Path, steps: int) -> None:
    validated = []

    class Note(Callback):
        def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
            validated.append(trainer.global_step)

    distil(data, tmp_path, model(2, 32), model(2, 32, seed=1), settings(steps), (Note(),))
    assert validated == {3: [3], 8: [8], 11: [8, 11]}[steps]  # an epoch has 8
    assert list((tmp_path / "checkpoints").glob("*.ckpt"))
