"""What takes less memory: activations computed again, and batches as large as fit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import model
from test_lit_module import Gradients, distil, every_loss, set_up, settings

from kd import batch_size
from kd.datamodule import TextDataModule
from kd.errors import UserError
from kd.lit_module import FrozenTeacher
from kd.losses import HardLabelLoss
from kd.models import encoder_layers, recompute_activations
from kd.sources import TextData
from kd.tasks import Classification

WIDE: dict[str, Any] = {"modernbert": {"global_attn_every_n_layers": 1}}  # a loss compares the attention of all layers


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert"])
def test_checkpointed_gradients_are_the_same(data: TextDataModule, tmp_path: Path, family: str) -> None:
    """Of every loss, on every kind of signal, with dropout: the same numbers are drawn again."""
    found = []
    for checkpointing in (False, True):
        student, teacher = model(2, 32, model_type=family, **WIDE.get(family, {})), model(2, 32, seed=1)
        if checkpointing:
            recompute_activations(student)
            student = copy.deepcopy(student)
            calls = count_layer_calls(student)
        found.append(Gradients())
        distil(data, tmp_path / str(checkpointing), student, teacher, settings(3), (found[-1],))
    found[0].check_same(found[1])
    assert calls() == 2 * 3 * 2  # each of 2 layers twice in each of 3 steps


def count_layer_calls(student: Any) -> Any:
    """How often the first linear module of each layer was asked for something to be learned from."""
    count = [0]

    def counted(*_: Any) -> None:
        count[0] += student.training

    for layer in encoder_layers(student):
        next(m for m in layer.modules() if isinstance(m, torch.nn.Linear)).register_forward_pre_hook(counted)
    return lambda: count[0]


def rows_of(text: TextData, tmp_path: Path) -> TextDataModule:
    tokenizers = {"student": text.tokenizer, "teacher": text.tokenizer}
    return TextDataModule(text, tokenizers, tmp_path / "cache", max_length=32)


def test_the_batch_grows_until_it_does_not_fit(text: TextData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An accelerator that takes ``limit`` tokens; there are 200 rows, so that 20 steps allow 8 of them."""
    monkeypatch.setattr(batch_size, "STEPS", 3)
    seen: list[int] = []
    plain = batch_size.Trial.__call__

    def limited(self: batch_size.Trial, drawn: Any) -> None:
        lengths = self.rows.splits["train"].lengths
        assert lengths[drawn].min() >= sorted(lengths)[-len(drawn)]  # the longest
        seen.append(len(drawn))
        if len(drawn) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        plain(self, drawn)

    monkeypatch.setattr(batch_size.Trial, "__call__", limited)
    monkeypatch.setattr(batch_size, "on_cpu", batch_size.on_accelerator)
    student, teacher, task = model(2, 32), model(2, 32, seed=1), Classification(["negative", "positive"])
    losses = set_up(every_loss(), student, teacher, task)
    signals = tuple(signal for loss in losses.values() for signal in loss.teacher_signals)
    before, drawn = copy.deepcopy(student.state_dict()), torch.get_rng_state()
    frozen, rows = FrozenTeacher(teacher, signals), rows_of(text, tmp_path)
    size, why = batch_size.find(student, losses, frozen, rows, torch.device("cpu"), mixed=False)
    assert (size, seen) == (16, [8, 16, 32])
    assert why == "32 of the longest rows do not fit"
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    assert all(p.grad is None for p in student.parameters())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_on_the_cpu_the_free_memory_is_the_limit(
    text: TextData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_size, "STEPS", 1)
    student, task, rows = model(2, 32), Classification(["negative", "positive"]), rows_of(text, tmp_path)
    losses = set_up({"hard": HardLabelLoss(1.0)}, student, student, task)

    def found(free: float) -> int:
        monkeypatch.setattr(batch_size, "free_bytes", lambda: free)
        return batch_size.find(student, losses, None, rows, torch.device("cpu"), mixed=False)[0]

    assert found(1e12) == 128  # 256 of 200 rows there are not
    trial = batch_size.Trial(student, losses, None, rows, torch.device("cpu"), False)
    longest = np.argsort(-rows.splits["train"].lengths, kind="stable")
    sizes = [trial.kept_bytes(longest[:count]) for count in (8, 16)]
    assert 1.8 < sizes[1] / sizes[0] < 2.2
    assert sizes[0] > 8 * 2 * 10 * 32 * 4 * 10  # 8 rows, 2 layers, 10 tokens, 32 wide, 4 bytes, ten tensors or more
    assert found(4.1 * sizes[1] * 2) == 32
    with pytest.raises(UserError, match="not even 8 rows fit"):
        found(1e4)
