"""The losses against hand-computed vectors (V1 to V3), and what must hold for each."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kd.errors import UserError
from kd.losses import HardLabelLoss, HiddenLoss, PatientLoss, SoftTargetLoss
from kd.losses.functional import kl, masked_squared_error, patient_distance
from kd.tasks import Classification

STUDENT = [[1, 2, 0.5], [0.2, -0.3, 1.5]]
TEACHER = [[2, 1, 0], [0, 0, 3]]
DTYPES = [(torch.float64, 1e-6), (torch.float32, 1e-4)]


def config(layers: int, width: int) -> Any:
    return SimpleNamespace(num_hidden_layers=layers, hidden_size=width)


def logits(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.tensor(STUDENT, dtype=dtype), torch.tensor(TEACHER, dtype=dtype)


def softened_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    task = Classification(["a", "b", "c"])
    log_q, log_p = (task.log_probabilities(one, temperature) for one in (student, teacher))
    return temperature**2 * kl(log_p, log_q)[:, 0]


@pytest.mark.parametrize(("dtype", "within"), DTYPES)
@pytest.mark.parametrize(
    ("temperature", "rows"),
    [(1, [0.43226002, 0.13690490]), (2, [0.10462922, 0.06411410]), (4, [0.02469472, 0.01750366])],
)
def test_v1_softened_kl(dtype: torch.dtype, within: float, temperature: float, rows: list[float]) -> None:
    student, teacher = logits(dtype)
    expected = temperature**2 * torch.tensor(rows, dtype=dtype)
    torch.testing.assert_close(softened_kl(student, teacher, temperature), expected, atol=within, rtol=0)


@pytest.mark.parametrize(("dtype", "within"), DTYPES)
def test_v1_textbook_mixture_and_gradient(dtype: torch.dtype, within: float) -> None:
    student, teacher = logits(dtype)
    student.requires_grad_()
    task = Classification(["a", "b", "c"])
    batch = {"labels": torch.tensor([0, 2])}
    total = torch.zeros((), dtype=dtype)
    for loss in (HardLabelLoss(0.5), SoftTargetLoss(0.5, temperature=2)):
        loss.setup(config(1, 1), config(1, 1), task)
        value, count = loss({"logits": student}, {"logits": teacher}, batch)
        assert count == 2
        total = total + loss.weight * value / count
    assert abs(float(total.detach()) - 0.62561939) < within
    soft = softened_kl(student, teacher, 2).sum() / 2
    (gradient,) = torch.autograd.grad(soft, student)
    expected = [[-0.21472443, 0.17382838, 0.04089605], [0.11640345, 0.05652831, -0.17293177]]
    torch.testing.assert_close(gradient, torch.tensor(expected, dtype=dtype), atol=within, rtol=0)


def test_v1_high_temperature_is_half_the_centred_logit_error() -> None:
    student, teacher = logits(torch.float64)
    for temperature, expected in ((10, 0.32296825), (100, 0.30945928), (1000, 0.30794738)):
        assert abs(float(softened_kl(student, teacher, temperature).mean()) - expected) < 1e-6


@pytest.mark.parametrize(("dtype", "within"), DTYPES)
def test_v2_patient(dtype: torch.dtype, within: float) -> None:
    student = {
        "cls/1": torch.tensor([[3.0, 4.0]], dtype=dtype),
        "cls/2": torch.tensor([[1.0, 0.0]], dtype=dtype),
    }
    teacher = {
        "cls/1": torch.tensor([[0.0, 5.0]], dtype=dtype),
        "cls/2": torch.tensor([[1.0, 1.0]], dtype=dtype),
    }
    rows = [float(patient_distance(student[f"cls/{i}"], teacher[f"cls/{i}"])) for i in (1, 2)]
    assert abs(rows[0] - 0.4) < within
    assert abs(rows[1] - 0.58578644) < within
    loss = PatientLoss(1.0, layers=[[1, 1], [2, 2]])
    loss.setup(config(3, 2), config(3, 2), Classification(["a", "b"]))
    value, count = loss(student, teacher, {})
    assert abs(float(value / count) - 0.98578644) < within
    plain = PatientLoss(1.0, layers=[[1, 1], [2, 2]], normalize=False)
    plain.setup(config(3, 2), config(3, 2), Classification(["a", "b"]))
    value, _ = plain(student, teacher, {})
    assert abs(float(value) / (2 * 2) - 2.75) < within  # the published code's mean over layers and width


@pytest.mark.parametrize(("dtype", "within"), DTYPES)
def test_v3_hidden(dtype: torch.dtype, within: float) -> None:
    student = torch.tensor([[[1, 0], [0, 2], [9, 9]], [[1, 1], [2, 0], [0, 3]]], dtype=dtype)
    teacher = torch.tensor([[[0, 0], [1, 1], [-9, 9]], [[1, 2], [2, 2], [1, 3]]], dtype=dtype)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    loss = HiddenLoss(1.0, layers="uniform")
    loss.setup(config(1, 2), config(1, 2), Classification(["a", "b"]))
    signals = {"hidden/1": student}, {"hidden/1": teacher}
    value, count = loss(*signals, {"student": {"attention_mask": mask}})
    assert count == 5
    assert abs(float(value / count) - 0.9) < within
    everything = torch.ones_like(mask)
    assert abs(float(masked_squared_error(student, teacher, everything) / 6) - 27.75) < within


def test_projection_comes_before_the_error() -> None:
    loss = HiddenLoss(1.0, layers="uniform")
    loss.setup(config(1, 2), config(1, 3), Classification(["a", "b"]))
    (weight,) = loss.parameters()
    with torch.no_grad():
        weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]]))
    value, count = loss(
        {"hidden/1": torch.tensor([[[1.0, 2.0]]])}, {"hidden/1": torch.tensor([[[1.0, 1.0, 0.0]]])},
        {"student": {"attention_mask": torch.ones(1, 1)}},
    )  # fmt: skip
    assert abs(float((value / count).detach()) - 2 / 3) < 1e-6


def test_float16_differences_do_not_overflow() -> None:
    big, none = torch.full((1, 1, 4), 300.0, dtype=torch.float16), torch.zeros(1, 1, 4, dtype=torch.float16)
    assert float(masked_squared_error(big, none, torch.ones(1, 1))) == 90000


def test_projections_are_learned_only_where_widths_differ() -> None:
    for width, expected in ((8, 0), (12, 2)):
        loss = PatientLoss(1.0, "skip")
        loss.setup(config(3, 8), config(3, width), Classification(["a", "b"]))
        assert len(list(loss.parameters())) == expected


def test_a_weight_of_zero_is_refused() -> None:
    with pytest.raises(UserError, match="weight=0 must be above 0"):
        PatientLoss(0, "skip")
