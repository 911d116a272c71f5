"""What the speed benchmarks compute from what they measured, and that all programs minimize one objective."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from kd.layer_map import patient_pairs
from kd.losses import PatientLoss, SoftTargetLoss
from kd.tasks import Classification
from speed import measure, objective, prepare
from speed.clock import Clock
from speed.table import ratio, rotated
from speed.work import Work, load


def work(method: str = "pkd", rows: int = 8000) -> Work:
    return prepare.make_work(Path("/nowhere"), method, "minilm_l6", "bert_mini", rows)


def test_a_ratio_is_taken_round_by_round() -> None:
    found = ratio([10.0, 30.0, 90.0], [2.0, 3.0, 30.0])
    assert (found.middle, found.low, found.high) == (5.0, 3.0, 10.0)  # the ratio of the medians would be 10
    assert str(found) == "5.00 (3.00–10.00)"
    with pytest.raises(ValueError, match="shorter"):
        ratio([1.0, 2.0], [1.0])


def test_every_program_comes_first_once() -> None:
    names = ["a", "b", "c"]
    assert [rotated(names, i)[0] for i in range(3)] == names
    assert sorted(rotated(names, 5)) == names


def test_steps_that_are_measured_are_whole_pools_of_lengths() -> None:
    assert measure.counted(work(), {}, part=40, warm_up=5) == (5, 45)
    grouped = {"train_sampling_strategy": "group_by_length"}
    assert measure.counted(work(), grouped, part=40, warm_up=5) == (50, 100)
    assert measure.counted(work(rows=1280), grouped, part=12, warm_up=5) == (10, 30)  # a pool of 10 batches there
    with pytest.raises(SystemExit, match="more rows"):
        measure.counted(work(rows=96), {}, part=2, warm_up=5)


def test_steps_belong_to_the_job_before_them() -> None:
    lines = [(1.0, "kd: a"), (2.0, "Loss (logit), learning rate"), (7.0, "kd: b"), (8.0, "Loss (logit), learning rate")]
    found = {"lines": lines, "ticks": [1.5, 3.0, 4.0, 9.0, 10.0]}  # the first: of a teacher that was fine-tuned
    assert measure.jobs(found) == [(2.0, [3.0, 4.0]), (8.0, [9.0, 10.0])]


def test_the_work_is_kds_own_configuration(tmp_path: Path) -> None:
    made = work()
    assert (made.hard, made.soft, made.temperature, made.patient) == (0.5, 0.5, 4.0, 1.0)
    assert made.pairs == tuple(patient_pairs("skip", 4, 6))
    assert made.steps == 750
    assert work("logit").pairs == ()
    made.save(tmp_path / "work.json")
    assert load(tmp_path / "work.json") == made


def test_the_others_minimize_what_kd_minimizes() -> None:
    torch.manual_seed(0)
    made, rows = work(), 6
    student = SimpleNamespace(
        logits=torch.randn(rows, 2), loss=torch.tensor(0.7), hidden_states=[torch.randn(rows, 3, 8) for _ in range(5)]
    )
    teacher = SimpleNamespace(
        logits=torch.randn(rows, 2), hidden_states=[torch.randn(rows, 3, 12) for _ in range(7)]
    )  # fmt: skip
    task, config = Classification(prepare.LABELS), SimpleNamespace(num_hidden_layers=4, hidden_size=8)
    patient = PatientLoss(1.0, "skip")
    patient.setup(config, SimpleNamespace(num_hidden_layers=6, hidden_size=12), task)
    soft = SoftTargetLoss(0.5, temperature=4.0)
    soft.setup(config, config, task)
    ours: dict[str, Any] = {f"cls/{i}": states[:, 0] for i, states in enumerate(student.hidden_states)}
    theirs: dict[str, Any] = {f"cls/{i}": states[:, 0] for i, states in enumerate(teacher.hidden_states)}
    terms = [patient(ours, theirs, {}), soft({"logits": student.logits}, {"logits": teacher.logits}, {})]
    means = [float(value.detach() / count) for value, count in terms]
    maps = patient.projections
    assert isinstance(maps, nn.ModuleList)
    expected = 0.5 * 0.7 + means[0] + 0.5 * means[1]
    assert float(objective.loss(made, student, teacher, maps)) == pytest.approx(expected, rel=1e-5)


def test_a_step_that_calls_its_base_class_is_one_step() -> None:
    class Derived(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    parameter = torch.nn.Parameter(torch.ones(2))
    torch.optim.AdamW([parameter])  # from here on torch watches the base class's step, too
    optimizer, clock = Derived([parameter]), Clock()
    for _ in range(3):
        parameter.grad = torch.ones(2)
        optimizer.step()
    for hook in clock.hooks:  # they are the whole process's
        hook.remove()
    assert len(clock.ticks) == 3
