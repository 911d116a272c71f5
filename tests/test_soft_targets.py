"""Ways to compare logits: the vectors (V1), and in numpy; DistilBERT's triple loss (V6); PKD as published."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import Tensor
from torch.autograd import gradcheck

from kd.build import build
from kd.command_line import conf_dir
from kd.errors import UserError
from kd.losses import (
    DynamicTemperatureLoss,
    HiddenCosineLoss,
    InterClassLoss,
    IntraClassLoss,
    JensenShannonLoss,
    LogitDistanceLoss,
    Loss,
    ReverseKLLoss,
    SoftTargetLoss,
    StandardizedLogitLoss,
)
from kd.tasks import Classification, FeatureExtraction, MaskedLM, Multilabel, Ordinal, Regression, Task

Numbers = NDArray[np.float64]
TASK = Classification(["a", "b", "c"])
SEVERAL = Multilabel(["a", "b", "c"])
STUDENT, TEACHER = [[1, 2, 0.5], [0.2, -0.3, 1.5]], [[2, 1, 0], [0, 0, 3]]
DTYPES = [(torch.float64, 1e-6), (torch.float32, 1e-4)]
EVERY: list[Loss] = [
    ReverseKLLoss(1.0, 2.0), JensenShannonLoss(1.0, 2.0), StandardizedLogitLoss(1.0, 2.0), InterClassLoss(1.0, 2.0),
    IntraClassLoss(1.0, 2.0), DynamicTemperatureLoss(1.0, 4.0, "flsw"), DynamicTemperatureLoss(1.0, 4.0, "cwsm"),
]  # fmt: skip


def config(layers: int = 2, width: int = 2) -> Any:
    return SimpleNamespace(num_hidden_layers=layers, hidden_size=width)


def set_up(loss: Loss, task: Task = TASK) -> Loss:
    loss.setup(config(), config(), task)
    return loss


def mean(loss: Loss, student: Any, teacher: Any, task: Task = TASK, dtype: torch.dtype = torch.float64) -> float:
    ours, theirs = (torch.as_tensor(each, dtype=dtype) for each in (student, teacher))
    value, count = set_up(loss, task)({"logits": ours}, {"logits": theirs}, {})
    assert count == len(ours)
    return float(value / count)


def rows(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("dtype", "within"), DTYPES)
@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (ReverseKLLoss(1.0, 1.0), 0.30131794),
        (JensenShannonLoss(1.0, 1.0), 0.07000735),
        (LogitDistanceLoss(1.0), 0.77166667),
        (StandardizedLogitLoss(1.0, 2.0), 4 * 0.06873308),  # T², which the vector leaves out
        (InterClassLoss(1.0, 1.0), 0.54576394),
        (IntraClassLoss(1.0, 1.0), 0.0),  # a line through two points
        (SoftTargetLoss(1.0, 2.0, "sum"), 0.33748663),
        (SoftTargetLoss(1.0, 2.0, "mean"), 0.11249554),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Loss) else "",
)
def test_v1(dtype: torch.dtype, within: float, loss: Loss, expected: float) -> None:
    assert abs(mean(loss, STUDENT, TEACHER, dtype=dtype) - expected) < within


@pytest.mark.parametrize(("kind", "expected"), [("flsw", [3.90420724, 4.09579276]), ("cwsm", [3.92364199, 4.07635801])])
def test_v1_dynamic_temperatures(kind: str, expected: list[float]) -> None:
    loss = set_up(DynamicTemperatureLoss(1.0, 4.0, kind))
    assert isinstance(loss, DynamicTemperatureLoss)
    student, teacher = torch.tensor(STUDENT, dtype=torch.float64), torch.tensor(TEACHER, dtype=torch.float64)
    assert loss.temperatures(student, teacher).tolist() == pytest.approx(expected, abs=1e-6)
    wild = set_up(DynamicTemperatureLoss(1.0, 4.0, kind, beta=1000.0))
    assert isinstance(wild, DynamicTemperatureLoss)
    assert wild.temperatures(student, teacher).min() == 1


def kl_by_hand(p: Numbers, q: Numbers) -> Numbers:
    return np.asarray((p * np.log(p / q)).sum(-1))


def softmax(z: Numbers) -> Numbers:
    e = np.exp(z - z.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def two_outcomes(z: Numbers) -> Numbers:
    p = 1 / (1 + np.exp(-z))
    return np.stack([1 - p, p], -1)


@pytest.mark.parametrize("task", [TASK, SEVERAL, Ordinal(["a", "b", "c", "d"])], ids=lambda t: type(t).__name__)
def test_a_second_implementation_agrees(task: Task) -> None:
    student, teacher = rows(6, 3, 0).numpy(), rows(6, 3, 1).numpy()
    of = softmax if task is TASK else two_outcomes  # [6, 3], or [6, 3, 2]
    p, q = of(teacher / 2), of(student / 2)
    m = (p + q) / 2
    by_hand = {
        ReverseKLLoss: 4 * kl_by_hand(q, p).mean(),
        JensenShannonLoss: 4 * (kl_by_hand(p, m) + kl_by_hand(q, m)).mean() / 2,
        SoftTargetLoss: 4 * kl_by_hand(p, q).mean(),
    }
    for kind, expected in by_hand.items():
        assert mean(kind(1.0, 2.0), student, teacher, task) == pytest.approx(expected, abs=1e-12)
    columns = [np.corrcoef(a, b)[0, 1] for a, b in zip(*(x.reshape(6, -1).T for x in (q, p)), strict=True)]
    assert mean(IntraClassLoss(1.0, 2.0), student, teacher, task) == pytest.approx(4 * (1 - np.mean(columns)), abs=1e-9)
    if task is TASK:
        along = [np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)]
        assert mean(InterClassLoss(1.0, 2.0), student, teacher) == pytest.approx(4 * (1 - np.mean(along)), abs=1e-9)
        zs, zt = (((x.T - x.mean(1)) / x.std(1, ddof=1)).T for x in (student, teacher))
        expected = 4 * kl_by_hand(softmax(zt / 2), softmax(zs / 2)).mean()
        assert mean(StandardizedLogitLoss(1.0, 2.0), student, teacher) == pytest.approx(expected, abs=1e-9)
    cosine = (student * teacher).sum(1) / np.linalg.norm(student, axis=1) / np.linalg.norm(teacher, axis=1)
    likeliest = of(student).max(-1).reshape(6, -1).mean(-1)
    for name, w in (("flsw", (1 - cosine) ** 2), ("cwsm", 1 / (likeliest + 1e-3))):
        t = np.maximum(1, 3 + 1.5 * (w.mean() - w))[:, None]
        each = kl_by_hand(of(teacher / t), of(student / t)).reshape(6, -1).mean(-1)
        loss = DynamicTemperatureLoss(1.0, 3.0, name, beta=1.5, gamma=2.0 if name == "flsw" else 1.0)
        assert mean(loss, student, teacher, task) == pytest.approx((t[:, 0] ** 2 * each).mean(), abs=1e-9)


def test_the_dynamic_temperature_is_a_constant_in_the_gradient() -> None:
    student, teacher = rows(4, 3, 0).requires_grad_(), rows(4, 3, 1)
    loss = set_up(DynamicTemperatureLoss(1.0, 4.0, "flsw"))
    assert isinstance(loss, DynamicTemperatureLoss)
    held = loss.temperatures(student, teacher)
    (gradient,) = torch.autograd.grad(loss({"logits": student}, {"logits": teacher}, {})[0], student)
    loss.temperatures = lambda *_: held  # type: ignore[method-assign]
    assert gradcheck(lambda z: loss({"logits": z}, {"logits": teacher}, {})[0], (student,))
    (again,) = torch.autograd.grad(loss({"logits": student}, {"logits": teacher}, {})[0], student)
    torch.testing.assert_close(gradient, again)


@pytest.mark.parametrize("loss", EVERY, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_rows_that_do_not_vary_have_finite_values_and_gradients(loss: Loss, dtype: torch.dtype, count: int) -> None:
    student = torch.full((count, 3), 0.1, dtype=dtype).requires_grad_()
    value, _ = set_up(loss)({"logits": student}, {"logits": rows(count, 3, 0).to(dtype)}, {})
    (gradient,) = torch.autograd.grad(value, student)
    assert torch.isfinite(value)
    assert gradient.numel() == 0 or float(gradient.abs().max()) < 100  # a difference by rounding has no direction
    if count == 1 and isinstance(loss, IntraClassLoss):
        assert float(value.detach()) == 0


def test_logits_of_numbers_are_compared_in_standard_deviations() -> None:
    task = Regression(["x"])
    task.see([0.0, 4.0])
    assert mean(LogitDistanceLoss(1.0), [[1.0], [3.0]], [[2.0], [0.0]], task) == pytest.approx((1 + 9) / 2 / 4)


@pytest.mark.parametrize("task", [Regression(["x"]), FeatureExtraction()], ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("loss", EVERY, ids=lambda loss: type(loss).__name__)
def test_what_are_no_probabilities_is_refused(task: Task, loss: Loss) -> None:
    with pytest.raises(UserError, match="stand for none: take method=logit"):
        set_up(loss, task)


@pytest.mark.parametrize("task", [Classification(["a", "b"]), SEVERAL, Ordinal(["a", "b"])],
                         ids=lambda t: type(t).__name__)  # fmt: skip
@pytest.mark.parametrize("loss", [StandardizedLogitLoss(1.0, 2.0), InterClassLoss(1.0, 1.0)])
def test_two_numbers_that_are_shifted_and_scaled_are_refused(loss: Loss, task: Task) -> None:
    with pytest.raises(UserError, match="three outputs or more of which one is right"):
        set_up(loss, task)


def test_words_that_are_none_are_refused() -> None:
    with pytest.raises(UserError, match="kind=hard: say flsw or cwsm"):
        DynamicTemperatureLoss(1.0, 4.0, "hard")
    with pytest.raises(UserError, match="gamma=2.0 is read with kind=flsw only"):
        DynamicTemperatureLoss(1.0, 4.0, "cwsm", gamma=2.0)
    with pytest.raises(UserError, match="reduction=batchmean: say sum or mean"):
        SoftTargetLoss(1.0, 4.0, "batchmean")
    with pytest.raises(UserError, match="reduction=mean is a mean over the classes of one distribution"):
        set_up(SoftTargetLoss(1.0, 4.0, "mean"), SEVERAL)
    with pytest.raises(UserError, match="layers=uniform: say last, or pairs"):
        HiddenCosineLoss(1.0, "uniform")


@pytest.mark.parametrize(("dtype", "within"), DTYPES)
def test_v3_hidden_cosine(dtype: torch.dtype, within: float) -> None:
    student = torch.tensor([[[1, 0], [0, 2], [9, 9]], [[1, 1], [2, 0], [0, 3]]], dtype=dtype)
    teacher = torch.tensor([[[1, 1], [1, 1], [-9, 9]], [[1, 2], [2, 2], [1, 3]]], dtype=dtype)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    loss = HiddenCosineLoss(1.0)
    loss.setup(config(2), config(4), TASK)
    assert (loss.student_signals, loss.teacher_signals) == (("hidden/2",), ("hidden/4",))
    value, count = loss({"hidden/2": student}, {"hidden/4": teacher}, {"student": {"attention_mask": mask}})
    assert count == 5
    assert abs(float(value / count) - 0.19626261) < within


def terms_of(method: str) -> dict[str, Loss]:
    nodes = OmegaConf.load(conf_dir() / "method" / f"{method}.yaml")
    return {str(name): build(node) for name, node in nodes.items() if name != "name"}


def test_v6_distilbert() -> None:
    student = {
        "logits": torch.tensor([[2.0, 0, 1], [0, 1, 0]]).double(),
        "hidden/2": torch.tensor([[[1.0, 0], [1, 1]]]).double(),
    }
    teacher = {
        "logits": torch.tensor([[3.0, 0, 0], [0, 2, 0]]).double(),
        "hidden/2": torch.tensor([[[1.0, 1], [1, 1]]]).double(),
    }
    batch = {"labels": torch.tensor([0, -100]), "student": {"attention_mask": torch.ones(1, 2)}}
    found = {}
    losses = terms_of("distilbert")
    for name, loss in losses.items():
        value, count = set_up(loss, MaskedLM(compare="all"))(student, teacher, batch)
        found[name] = float(value / count)
    assert found == pytest.approx({"soft": 0.22171575, "hard": 0.40760596, "cosine": 0.14644661}, abs=1e-6)
    assert sum(loss.weight * found[name] for name, loss in losses.items()) == pytest.approx(2.07023727, abs=1e-6)


def test_pkd_as_its_published_code_reduces_it() -> None:
    losses = terms_of("pkd_upstream")
    losses["soft"].__dict__["temperature"] = 2.0  # the vector's
    logits = {"logits": torch.tensor(STUDENT).double()}, {"logits": torch.tensor(TEACHER).double()}
    values = [set_up(losses[name])(*logits, {"labels": torch.tensor([0, 2])}) for name in ("hard", "soft")]
    mixed = sum(
        losses[name].weight * float(value / count) for name, (value, count) in zip(losses, values, strict=False)
    )
    assert mixed == pytest.approx(0.51312384, abs=1e-6)
    states = [{"cls/1": torch.tensor([a]).double(), "cls/2": torch.tensor([b]).double()}
              for a, b in (([3.0, 4.0], [1.0, 0.0]), ([0.0, 5.0], [1.0, 1.0]))]  # fmt: skip
    for normalize, expected in ((False, 2.75), (True, 0.24644661)):
        node = OmegaConf.load(conf_dir() / "method" / "pkd_upstream.yaml").patient
        patient = build(OmegaConf.create({**node, "layers": [[1, 1], [2, 2]], "normalize": normalize}))
        patient.setup(config(3), config(3), TASK)
        value, count = patient(*states, {})
        assert float(value / count) == pytest.approx(expected, abs=1e-6)
