"""FLOPs by formula against torch's counter; where a step's time goes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import model
from omegaconf import OmegaConf
from test_lit_module import distil, settings
from torch.utils.flop_counter import FlopCounterMode

from kd import fused_layers, outcome, step_profile, utilisation
from kd.datamodule import TextDataModule


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
def test_the_formula_counts_what_torch_counts(family: str) -> None:
    student = model(3, 32, model_type=family, num_attention_heads=4)
    student.set_attn_implementation("eager")  # whose products the counter sees
    inputs = {"input_ids": torch.randint(5, 500, (6, 11)), "attention_mask": torch.ones(6, 11, dtype=torch.long)}
    with FlopCounterMode(display=False) as forward:
        loss = student(**inputs).logits.sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    expected = forward.get_total_flops()
    assert utilisation.work_of(student).forward(np.full(6, 11), 6) == expected
    assert backward.get_total_flops() == utilisation.BACKWARD * expected


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "electra"])
def test_it_counts_what_a_last_layer_of_the_first_token_computes(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_layers, "ADDS_BIAS_WITHIN", False)  # the counter does not know that product
    student = model(3, 32, model_type=family, num_attention_heads=4).train()
    fused_layers.fuse(student, first_alone=True)
    inputs = {"input_ids": torch.randint(5, 500, (6, 11)), "attention_mask": torch.ones(6, 11, dtype=torch.long)}
    with FlopCounterMode(display=False) as forward, torch.autocast("cpu", torch.bfloat16):
        loss = student(**inputs).logits.float().sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    expected = utilisation.work_of(student, first_alone=True).forward(np.full(6, 11), 6)
    assert forward.get_total_flops() == expected < utilisation.work_of(student).forward(np.full(6, 11), 6)
    assert backward.get_total_flops() == utilisation.BACKWARD * expected


def test_the_report_of_a_training(data: TextDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utilisation, "matmul_peak", lambda *_: 1e9)
    student, teacher = model(2, 32), model(2, 48, seed=1)
    fitted = distil(data, tmp_path, student, teacher, settings(12))
    clock = fitted.clock
    assert clock.batches == 12
    assert 0 < clock.seconds < fitted.seconds
    clock.seconds = 7 * 0.5  # of the 7 batches after the warm-up
    lengths = data.splits["train"].lengths
    work = [utilisation.work_of(one).forward(lengths, len(lengths)) for one in (student, teacher)]
    found: dict[str, Any] = utilisation.utilisation(student, teacher, data, clock, "32-true", torch.device("cpu")) or {}
    assert found["flops_per_batch"] == pytest.approx((3 * work[0] + work[1]) / 8)  # 64 rows in batches of 8
    assert found["share"] == pytest.approx(found["flops_per_batch"] / 0.5 / 1e9)
    alone: dict[str, Any] = utilisation.utilisation(student, None, data, clock, "32-true", torch.device("cpu")) or {}
    assert alone["flops_per_batch"] == pytest.approx(3 * work[0] / 8)
    assert 0 < found["padding"] < 0.5
    clock.batches = utilisation.WARM_UP
    assert utilisation.utilisation(student, None, data, clock, "32-true", torch.device("cpu")) is None


def test_the_peak_is_that_of_a_product() -> None:
    assert utilisation.shapes_of(model(2, 32)) == [(32, 32), (32, 64), (64, 32)]
    peak = utilisation.matmul_peak([(64, 64), (64, 128)], 32, torch.float32, torch.device("cpu"), seconds=0.02)
    assert 1e6 < peak < 1e16


def test_a_profile_names_every_part_and_leaves_a_trace(
    data: TextDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_profile, "STEPS", 6)
    how = replace(settings(16, accumulate_grad_batches=2), profile=True)
    fitted = distil(data, tmp_path, model(2, 32), model(2, 32, seed=1), how)
    profile: Any = fitted.trainer.profiler  # type: ignore[attr-defined]
    parts = profile.parts()
    assert list(parts) == [
        "data", "teacher", "student forward", "losses", "logging", "backward", "optimizer", "other",
    ]  # fmt: skip
    assert min(parts.values()) > 0
    assert 0 < profile.validated < profile.last - profile.first  # after the eighth batch
    assert sum(parts.values()) == pytest.approx((profile.last - profile.first - profile.validated) / 6)
    assert step_profile.described(parts).count("%") == 8
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    ranges = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert ranges.count("student") == ranges.count("teacher") == ranges.count("losses") == step_profile.TRACED


def test_without_it_there_is_no_trace(data: TextDataModule, tmp_path: Path) -> None:
    distil(data, tmp_path, model(2, 32), model(2, 32, seed=1))
    assert not (tmp_path / "trace.json").exists()


@pytest.mark.parametrize(("cached", "counted"), [(False, True), (True, False)])
def test_a_teacher_counts_only_where_it_runs_in_the_steps(
    data: TextDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool, counted: bool
) -> None:
    """It may be there for validation alone, with its signals of the training rows kept."""
    teacher = model(2, 48, seed=1)
    fitted = distil(data, tmp_path, model(2, 32), teacher, settings(2))
    data.splits["train"].kept = cast(Any, object()) if cached else None
    monkeypatch.setattr(outcome, "utilisation", lambda _, runs, *__: {"teacher": runs})
    cfg = OmegaConf.create({"report": {"measure": True}, "trainer": {"precision": "32-true"}})
    entries = cast(Any, [SimpleNamespace(model=one) for one in (teacher, fitted.module.student)])
    assert outcome.used(cfg, data, fitted, entries)["utilisation"] == {"teacher": teacher if counted else None}
