"""compile=auto|on|off: what is decided, and that a compiled student trains as any other."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import model
from lightning.pytorch.callbacks import Callback
from test_lit_module import Gradients, set_up, settings

from kd import compilation
from kd.command_line import compose
from kd.contradictions import contradictions
from kd.datamodule import TextDataModule
from kd.fit import fit
from kd.lit_module import FrozenTeacher
from kd.losses import HardLabelLoss, HiddenLoss, RelationLoss
from kd.models import recompute_activations
from kd.tasks import Classification

CALM: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.mark.parametrize(
    ("wanted", "device", "steps", "there", "expected", "says"),
    [
        ("auto", "cpu", 10**6, "g++", False, "gains nothing"),
        ("auto", "cuda", 100, "g++", False, "too few"),
        ("auto", "cuda", 10**6, "g++", True, "win back"),
        ("auto", "cuda", 10**6, None, False, "no C++ compiler"),
        ("auto", "mps", 10**6, "g++", False, "not tried on mps"),
        ("on", "cpu", 1, "g++", True, "compile=on"),
        ("off", "cuda", 10**6, "g++", False, "compile=off"),
    ],
)
def test_what_is_decided(
    monkeypatch: pytest.MonkeyPatch, wanted: str, device: str, steps: int, there: str | None, expected: bool, says: str
) -> None:
    monkeypatch.setattr(compilation, "compiler", lambda: there)
    compiles, why = compilation.decide(wanted, torch.device(device), steps)
    assert (compiles, says in why) == (expected, True)


def test_without_a_compiler_it_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd.contradictions.compiler", lambda: None)
    assert any("needs a C++ compiler" in found for found in contradictions(compose(["compile=on"])))
    assert not any("compiler" in found for found in contradictions(compose(["compile=auto"])))


class Layers(Callback):
    """What is compiled while training; the weights' names in a checkpoint."""

    def __init__(self) -> None:
        self.compiled: set[int] = set()
        self.names: list[str] = []

    def on_before_backward(self, trainer: L.Trainer, pl_module: Any, loss: Any) -> None:
        layers = pl_module.student.bert.encoder.layer
        self.compiled = {number for number, layer in enumerate(layers, start=1) if "forward" in vars(layer)}
        self.names = list(pl_module.state_dict())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_compiled_student_has_the_gradients_of_any_other(
    data: TextDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    """Traced and differentiated as ever, without the minute that making C++ of it takes.

    With losses on states and on query and key: of the layers that these are taken from none is compiled."""
    compiling = torch.compile
    monkeypatch.setattr(torch, "compile", lambda plain, **options: compiling(plain, backend="aot_eager", **options))
    start, teacher, task = model(3, 32, **CALM), model(3, 32, seed=1), Classification(["negative", "positive"])
    relations = RelationLoss(1.0, "last", ["query", "key", "value"], 8)
    terms = {"hard": HardLabelLoss(0.5), "hidden": HiddenLoss(1.0, "uniform"), "relations": relations}
    losses = set_up(terms, start, teacher, task)
    frozen = FrozenTeacher(teacher, tuple(signal for loss in terms.values() for signal in loss.teacher_signals))
    found, seen, names = [], [], []
    for word in ("off", "on"):
        found.append(Gradients())
        watch = Layers()
        how = replace(settings(3), compile=word)
        if checkpointing and word == "on":
            recompute_activations(start)
        fitted = fit(
            copy.deepcopy(start), task, losses, frozen, data, how, tmp_path / word, "key", "test",
            callbacks=(found[-1], watch),
        )  # fmt: skip
        assert not any("forward" in vars(module) for module in fitted.module.student.modules())
        seen.append(watch.compiled)
        names.append(watch.names)
        copy.deepcopy(fitted.module.student)
    found[0].check_same(found[1])
    assert seen == [set(), {1, 2}]
    assert names[0] == names[1]
