"""Between two logging steps nothing of a tensor is read, which an accelerator would have to be waited for."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import model
from lightning.pytorch.callbacks import Callback
from test_lit_module import distil, settings

from kd.datamodule import TextDataModule

READS = ("item", "tolist", "numpy", "cpu", "__float__", "__int__", "__bool__")

KNOWN = (
    "masking_utils.py",  # transformers asks, once in each forward pass, whether any token is padding
    'norm.device.type == "cpu" and',  # asked on a CPU alone, where nothing is waited for
    "in pad",  # of the data, on the CPU before they go to the accelerator
    "in drawn",  # the seed of a mask, on a CPU alone, from its generator
)


class Steps(Callback):
    """Which step is under way, as the number of those that are done; None outside."""

    def __init__(self) -> None:
        self.now: int | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.log_every_n_steps = 4  # type: ignore[attr-defined]  # a short run would log at every step

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.now = trainer.global_step

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.now = None


def test_a_step_waits_for_no_tensor(data: TextDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, seen = Steps(), list[tuple[int | None, str]]()

    def watched(name: str) -> Any:
        plain = getattr(torch.Tensor, name)

        def read(tensor: torch.Tensor, *arguments: Any, **named: Any) -> Any:
            seen.append((steps.now, f"{name}: {''.join(traceback.format_stack(limit=4)[:-1])}"))
            return plain(tensor, *arguments, **named)

        return read

    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, watched(name))
    how = settings(7)
    distil(data, tmp_path, model(2, 32), model(2, 32, seed=1), how, (steps,))
    seen = [(step, place) for step, place in seen if not any(known in place for known in KNOWN)]
    assert any(step == 3 for step, *_ in seen)  # it logs there, so what is watched is what is read
    assert [found for found in seen if found[0] in (1, 2, 5)] == []  # 0: the trainer's first; 4 begins as 3 ends
