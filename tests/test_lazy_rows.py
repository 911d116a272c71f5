"""Rows that are updated when they are read end where torch.optim.AdamW, which updates all at every step, ends."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import model
from lightning.pytorch.callbacks import Callback
from ranks import on_two_ranks
from test_lit_module import settings
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kd import lazy_rows
from kd.command_line import compose
from kd.contradictions import frozen_contradictions
from kd.datamodule import TextDataModule
from kd.errors import UserError
from kd.fit import FitSettings, fit, make_trainer, tokens_of_a_step
from kd.gradients import GradientWatch
from kd.grid import Grid
from kd.lazy_embeddings import why_not
from kd.lazy_rows import LazyAdamW
from kd.lit_module import DistillationModule
from kd.losses import HardLabelLoss
from kd.quantized_embedding import FakeQuantizedEmbedding
from kd.schemes import Settings
from kd.sources import TextData
from kd.tasks import Classification

ROWS, WIDTH, STEPS = 1000, 8, 400
ADAMW = functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.01)


def draws(count: int) -> Tensor:
    """``[count, 48]`` rows, the n-th as often as 1 / n."""
    return torch.multinomial(1 / torch.arange(1.0, ROWS + 1), count * 48, replacement=True).view(count, 48)


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-8, 1e-10])  # of gradients; eps is 1e-8
def test_as_adamw_in_float64(size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """To float32's rounding, which is closer than dense AdamW in float32 comes."""
    monkeypatch.setattr(lazy_rows, "LONGEST", 300)
    torch.manual_seed(0)
    start = 0.05 * torch.randn(ROWS, WIDTH)
    kinds = (torch.float32, torch.float64, torch.float32)
    tables = [nn.Embedding(ROWS, WIDTH, _weight=start.to(kind, copy=True)) for kind in kinds]
    optimizers: list[Any] = [LazyAdamW([tables[0].weight], **ADAMW.keywords), *(ADAMW([t.weight]) for t in tables[1:])]
    rows = optimizers[0].attach(tables[0])
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: min(step / 20, 1) * (1 - step / STEPS)) for o in optimizers
    ]
    for ids in draws(STEPS):
        gradient = size * torch.randn(len(ids), WIDTH) * 10 ** (2 * torch.rand(len(ids), WIDTH) - 1)
        read = tables[0](ids)
        assert (read - tables[1].weight[ids]).abs().max() < 1e-6
        read.backward(gradient)
        assert tables[0].weight.grad is not None
        whole = tables[0].weight.grad.to_dense()
        tables[1].weight.grad, tables[2].weight.grad = whole.double(), whole
        for each in (*optimizers, *schedules):
            each.step()
    behind = int((rows.stands < STEPS).sum())
    rows.detach()
    lazy, exact, dense = (table.weight.detach().double() for table in tables)
    assert behind > 300
    assert (exact - start).abs().max() > (1e-2 if size > 1e-8 else 4e-4)
    assert (lazy - exact).abs().max() < 1e-6
    assert (lazy - exact).abs().mean() < (dense - exact).abs().mean()
    assert (lazy - dense).abs().max() < STEPS * 2**-24 * 0.25  # half a unit in the last place of 0.2 at every step


class Watch(Callback):
    def __init__(self, ends: int | None = None) -> None:
        self.ends, self.weights = ends, dict[str, Tensor]()
        self.validated: list[Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.ends:
            raise KeyError  # as a process that ends

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.validated.append(pl_module.student.get_input_embeddings().weight.detach().clone())

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.weights = {name: tensor.clone() for name, tensor in pl_module.student.state_dict().items()}


def trained(text: TextData, directory: Path, lazy: bool, watch: Watch, **fields: Any) -> DistillationModule:
    data = TextDataModule(text, {"student": text.tokenizer}, directory.parent / "cache", 4, 32, 60)
    trainer = {
        "accelerator": "cpu", "devices": 1, "strategy": "auto", "max_epochs": 3, "max_steps": -1,
        "precision": "32-true", "accumulate_grad_batches": 2, "gradient_clip_val": 0.5, "log_every_n_steps": 5,
    }  # fmt: skip
    how = FitSettings(trainer, ADAMW, "linear", 0.1, 0, checkpoint_seconds=0.0, lazy_embeddings=lazy)
    task, loss = Classification(["negative", "positive"]), HardLabelLoss(weight=1.0)
    student = model(layers=1, **fields)
    loss.setup(student.config, student.config, task)
    gradients = GradientWatch()
    return fit(
        student, task, {"hard": loss}, None, data, how, directory, "key", "test", callbacks=[watch],
        gradients=gradients,
    ).module  # fmt: skip


def assert_close(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert set(one) == set(two)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "electra", "modernbert", "distilbert"])
def test_a_training_ends_alike(text: TextData, tmp_path: Path, kind: str) -> None:
    """With clipping, a schedule and accumulation; validated weights, too."""
    watches = [Watch(), Watch()]
    one, two = (
        trained(text, tmp_path / str(lazy), lazy, watch, model_type=kind)
        for lazy, watch in zip((True, False), watches, strict=True)
    )
    assert one.rows is not None
    assert two.rows is None
    assert (one.rows.mean != 0).any(1).sum() < len(one.rows.mean) / 2  # most rows were never in a batch
    assert_close(watches[0].weights, watches[1].weights)
    for lazy, dense in zip(watches[0].validated, watches[1].validated, strict=True):
        torch.testing.assert_close(lazy, dense, atol=2e-6, rtol=1e-5)
    embedding = one.student.get_input_embeddings()
    assert not embedding.sparse
    assert not embedding._forward_pre_hooks


def test_rounded_rows_have_the_same_gradient() -> None:
    """A training is not compared: a bit more or less rounds a weight the other way."""
    ids, grid = draws(1), Grid.of(8, Settings("int8_qat", "int8_dynamic_trained", qat=True))
    plain = nn.Embedding(ROWS, WIDTH, padding_idx=3)
    found: list[Any] = []
    for plain.sparse in (False, True):
        plain.weight.grad = None
        FakeQuantizedEmbedding.of(plain, grid)(ids).sin().sum().backward()
        found.append(plain.weight.grad)
    dense, sparse = found
    assert sparse.is_sparse
    torch.testing.assert_close(sparse.to_dense(), dense)


def test_gone_on_to_the_bit(text: TextData, tmp_path: Path) -> None:
    alone, ended, again = Watch(), Watch(13), Watch()
    trained(text, tmp_path / "alone", True, alone)
    with pytest.raises(KeyError):
        trained(text, tmp_path / "ended", True, ended)
    with pytest.raises(UserError, match="updated when they are read"):
        trained(text, tmp_path / "ended", False, again)
    trained(text, tmp_path / "ended", True, again)
    for name, tensor in alone.weights.items():
        assert torch.equal(again.weights[name], tensor), name


def on_rank(rank: int) -> list[Tensor]:
    """The table after some steps, dense and lazy, of half of each batch."""
    found = []
    for lazy in (False, True):
        torch.manual_seed(0)
        table = nn.Embedding(ROWS, WIDTH, sparse=lazy)
        optimizer = (LazyAdamW if lazy else torch.optim.AdamW)([table.weight], **ADAMW.keywords)
        if lazy:
            optimizer.attach(table)  # type: ignore[attr-defined]
        both = DistributedDataParallel(table)
        for ids in draws(60):
            both(ids[rank::2]).sin().square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        if lazy:
            optimizer.rows.flush()  # type: ignore[attr-defined]
        found.append(table.weight.detach())
    return found


@pytest.mark.slow
def test_two_ranks(tmp_path: Path) -> None:
    (dense, lazy), (_, other) = on_two_ranks(on_rank, tmp_path)
    assert torch.equal(lazy, other)
    torch.testing.assert_close(lazy, dense, atol=2e-6, rtol=1e-5)


def test_where_steps_are_dense() -> None:
    def why(optimizer: Any = ADAMW, device: str = "cpu", **fields: Any) -> str | None:
        return why_not(model(**fields), optimizer, device)

    assert why() is None
    for says, found in (
        ("not torch.optim.AdamW", why(functools.partial(torch.optim.SGD, lr=0.1))),
        ("amsgrad", why(functools.partial(torch.optim.AdamW, amsgrad=True))),
        ("betas", why(functools.partial(torch.optim.AdamW, betas=(0.99, 0.95)))),
        ("cuda device wait", why(device="cuda")),
    ):
        assert says in str(found)
    frozen, tied = model(), model()
    frozen.get_input_embeddings().weight.requires_grad_(False)
    tied.decoder = nn.Linear(1, 1)
    tied.decoder.weight = tied.get_input_embeddings().weight
    assert why_not(frozen, ADAMW, "cpu") == "they are frozen"
    assert "decoder" in str(why_not(tied, ADAMW, "cpu"))


def test_frozen_embeddings_are_refused_where_they_make_no_sense() -> None:
    def says(*lines: str) -> list[str]:
        return frozen_contradictions(compose(["student=bert_mini", "paths.output=x", *lines]))

    frozen = "student.freeze_embeddings=true"
    assert says() == says(frozen) == []
    for line, why in (
        ("student.weights=random", "stay random"),
        ("data.task=masked_lm", "the decoder, too"),
        ("trainer.lazy_embeddings=true", "would be updated"),
    ):
        (found,) = says(frozen, line)
        assert why in found


def test_a_batch_in_parts_is_as_many_tokens(text: TextData, tmp_path: Path) -> None:
    """So that a training which goes on after an out-of-memory error decides as before."""
    rows = TextDataModule(text, {"student": text.tokenizer}, tmp_path / "cache", batch_size=8, limit=64)
    tokens = []
    for rows.parts in (1, 4):
        trainer, _ = make_trainer(settings(8, accumulate_grad_batches=2), rows, tmp_path, [], [])
        tokens.append(tokens_of_a_step(trainer, rows))
    assert tokens[0] == tokens[1] == rows.splits["train"].lengths.sum() / 4
