"""Dropout by random bits is dropout: rates, independence, gradients, seeds."""

from __future__ import annotations

import math
from pathlib import Path

import lightning as L
import pytest
import torch
from conftest import model
from lightning.pytorch.callbacks import Callback
from test_lit_module import settings
from torch import nn

from kd.datamodule import TextDataModule
from kd.fast_dropout import FastDropout
from kd.fit import fit
from kd.losses import HardLabelLoss
from kd.models import recompute_activations
from kd.tasks import Classification


@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rate_scale_and_gradient(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.full((999, 333), 3.0, dtype=dtype, requires_grad=True)
    y = FastDropout(p)(x)
    y.backward(torch.full_like(y, 2.0))
    kept = y != 0
    count = y.numel()
    assert float(kept.float().mean()) == pytest.approx(1 - p, abs=4.5 * math.sqrt(p * (1 - p) / count) + 1e-5)
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 3 / (1 - p)), rtol=1e-2, atol=0)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, y.detach() / 3 * 2, rtol=1e-2, atol=0)


def test_neighbours_are_independent() -> None:
    """Four numbers share a random word: each pair is dropped together as often as chance says."""
    torch.manual_seed(0)
    dropped = (FastDropout(0.3)(torch.ones(400_000)) == 0).view(-1, 4).double()
    together = (dropped.T @ dropped) / len(dropped)
    expected = torch.full((4, 4), 0.09).fill_diagonal_(0.3).double()
    assert (together - expected).abs().max() < 4.5 * math.sqrt(0.3 * 0.7 / len(dropped))


def test_the_edges_seeds_and_evaluation() -> None:
    x = torch.randn(5, 7)
    assert FastDropout(0.0)(x).equal(x)
    assert not FastDropout(1.0)(x).any()
    assert FastDropout(0.5).eval()(x).equal(x)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(FastDropout(0.5)(x))
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(drawn[2])


def test_a_student_trains_with_it_and_has_its_own_dropout_afterwards(
    data: TextDataModule, task: Classification, tmp_path: Path
) -> None:
    student, seen = model(2, 32), list[int]()

    class Look(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
            seen.append(sum(type(module) is FastDropout for module in pl_module.modules()))

    classes = [type(module) for module in student.modules()]
    loss = HardLabelLoss(weight=1.0)
    loss.setup(student.config, student.config, task)
    fit(student, task, {"hard": loss}, None, data, settings(), tmp_path, "key", "title", callbacks=[Look()])
    assert set(seen) == {classes.count(nn.Dropout)}
    assert [type(module) for module in student.modules()] == classes


@pytest.mark.parametrize("family", ["bert", "electra", "distilbert"])
def test_recomputed_activations_drop_the_same(family: str) -> None:
    found = []
    for again in (False, True):
        student = model(2, 32, model_type=family)
        if again:
            recompute_activations(student)
        for module in student.train().modules():
            if type(module) is nn.Dropout:
                module.__class__ = FastDropout
        torch.manual_seed(3)
        ids = torch.arange(5, 45).view(2, 20)
        with torch.autocast("cpu", torch.bfloat16):
            loss = student(ids, attention_mask=torch.ones_like(ids)).logits.float().square().sum()
        weights = [weight for weight in student.parameters() if weight.requires_grad]
        looked = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)  # as method.diagnose does
        loss.backward()
        found.append([each for each in (*looked, *(weight.grad for weight in weights)) if each is not None])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
