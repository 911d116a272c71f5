"""What must hold for every term of every file in conf/method/, whoever adds it.

Values are compared with vectors and second implementations in the tests of each loss.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.autograd import gradcheck

from kd.build import build
from kd.command_line import conf_dir, options
from kd.errors import UserError
from kd.losses import Loss
from kd.schedules import KEYS
from kd.tasks import NAMES, Task

LAYERS, WIDTH, HEADS = 3, 48, 4
ROWS, LENGTH, PADDED = 4, 6, 9
LENGTHS = [6, 3, 2, 5]
LABELS: dict[str, Any] = {
    "classification": [0, 1, 2, 0],
    "multilabel": [[0.0, 1, 1], [0, 0, 0], [1, 0, 1], [0, 1, 1]],
    "ordinal": [0, 1, 3, 0],
    "regression": [0.5, -1.0, 2.0, 0.25],
    "feature_extraction": [0.0, 0, 0, 0],
}
OUTPUTS = {"classification": 3, "multilabel": 3, "ordinal": 3, "regression": 1, "feature_extraction": WIDTH}
NAMED = {"classification": "abc", "multilabel": "abc", "ordinal": "abcd", "regression": "a", "feature_extraction": ""}
# rows of a batch are compared with each other, or share a temperature
COUPLED = {
    "ContrastiveLoss", "DynamicTemperatureLoss", "IntraClassLoss", "RelationalAngleLoss", "RelationalDistanceLoss",
    "SimilarityLoss",
}  # fmt: skip
# where student and teacher agree these have a value of their own, tested with them
NOT_ZERO = {"HardLabelLoss", "ContrastiveLoss"}
HELD = {"DynamicTemperatureLoss"}  # a part of these is a constant in the gradient, tested with them
PROJECTED = ("HiddenLoss", "PatientLoss", "EmbeddingLoss", "HiddenCosineLoss", "ContrastiveLoss")


def task_of(name: str) -> Task:
    return NAMES[name](list(NAMED[name]))


def config(width: int = WIDTH, heads: int = HEADS) -> Any:
    return SimpleNamespace(
        num_hidden_layers=LAYERS, hidden_size=width, num_attention_heads=heads, model_type="bert"
    )  # fmt: skip


def made(node: DictConfig, task: str, student: Any = None) -> Loss:
    loss: Loss = build(OmegaConf.masked_copy(node, [str(key) for key in node if key not in KEYS]))
    loss.setup(student or config(), config(), task_of(task))
    return loss


def terms() -> dict[str, tuple[DictConfig, str]]:
    """Each different term of conf/method/ by a name for people, with each task that makes a difference to it."""
    found: dict[str, tuple[DictConfig, str]] = {}
    for method in options("method"):
        for name, node in OmegaConf.load(conf_dir() / "method" / f"{method}.yaml").items():
            for task in LABELS if isinstance(node, DictConfig) else ():
                known = [other for seen, other in found.values() if seen == node]
                if task in known or refusal(node, task) or (known and of_states(node, task)):
                    continue
                found[f"{method}-{name!s}-{task}"] = (node, task)
    return found


def of_states(node: DictConfig, task: str) -> bool:
    """It looks at neither outputs nor labels, so that the task is nothing to it."""
    return "logits" not in made(node, task).student_signals and "same_label" not in node


def refusal(node: DictConfig, task: str) -> str:
    try:
        made(node, task)
    except UserError as error:
        return str(error)
    return ""


TERMS = terms()
every_term = pytest.mark.parametrize(("node", "task"), TERMS.values(), ids=list(TERMS))
distances = pytest.mark.parametrize(
    ("node", "task"),
    [pytest.param(*found, id=name) for name, found in TERMS.items()
     if found[0]._target_.rpartition(".")[2] not in NOT_ZERO],
)  # fmt: skip


def signals(names: tuple[str, ...], outputs: int, seed: int, width: int = WIDTH) -> dict[str, Tensor]:
    """Random ones; padded places hold numbers like the others."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "logits": (ROWS, outputs), "cls": (ROWS, width), "hidden": (ROWS, LENGTH, width),
        "embedding": (ROWS, LENGTH, width), "attention": (ROWS, HEADS, LENGTH, LENGTH),
        **dict.fromkeys(("query", "key", "value"), (ROWS, HEADS, LENGTH, width // HEADS)),
    }  # fmt: skip
    return {name: torch.randn(shapes[name.partition("/")[0]], generator=generator).double() for name in names}


def batch_of(task: str, length: int = LENGTH) -> dict[str, Any]:
    mask = (torch.arange(length) < torch.tensor(LENGTHS)[:, None]).long()
    return {
        "student": {"attention_mask": mask}, "teacher": {"attention_mask": mask},
        "labels": torch.tensor(LABELS[task]),
    }  # fmt: skip


def both(loss: Loss, task: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return (
        signals(loss.student_signals, OUTPUTS[task], 1),
        signals(loss.teacher_signals, OUTPUTS[task], 2),
    )


@every_term
def test_it_says_what_it_computes(node: DictConfig, task: str) -> None:
    loss = made(node, task)
    assert loss.student_signals
    assert loss.formula
    assert loss.formula.isascii()
    assert "{" not in loss.formula
    value, count = loss(*both(loss, task), batch_of(task))
    assert value.ndim == count.ndim == 0
    assert torch.isfinite(value)
    assert float(count) == {"tokens": sum(LENGTHS)}.get(loss.unit, ROWS)


@distances
def test_zero_value_and_gradient_where_student_is_teacher(node: DictConfig, task: str) -> None:
    loss = made(node, task)
    teacher = signals(tuple({*loss.student_signals, *loss.teacher_signals}), OUTPUTS[task], 0)
    # layers that are compared are not of one number in student and teacher
    pairs = zip(loss.student_signals, loss.teacher_signals, strict=True)
    student = {ours: teacher[theirs].clone().requires_grad_() for ours, theirs in pairs}
    value, _ = loss(student, teacher, batch_of(task))
    assert float(value.detach()) == pytest.approx(0, abs=1e-9)
    gradients = torch.autograd.grad(value, list(student.values()))
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-6
    other, _ = loss(*both(loss, task), batch_of(task))
    assert float(other) > 1e-3  # which is not 0 everywhere


def spoiled(name: str, tensor: Tensor, by: float) -> Tensor:
    """Longer, and with ``by`` at every padded place, also of a query or key of an attention."""
    if name.startswith(("logits", "cls")):
        return tensor
    queries = -2 if name.startswith(("query", "key", "value", "attention")) else 1
    real = torch.arange(PADDED) < torch.tensor(LENGTHS)[:, None]
    places = real[:, None, :, None] if queries == -2 else real[:, :, None]
    shape = list(tensor.shape)
    shape[queries] = PADDED
    if name.startswith("attention"):
        places = places & real[:, None, None, :]
        shape[-1] = PADDED
    long = torch.full(shape, by, dtype=tensor.dtype)
    long[tuple(slice(size) for size in tensor.shape)] = tensor
    return torch.where(places, long, by)


@every_term
def test_padded_places_count_nothing(node: DictConfig, task: str) -> None:
    loss = made(node, task)
    student, teacher = both(loss, task)
    value, count = loss(student, teacher, batch_of(task))
    inputs = {name: spoiled(name, tensor, 1e30).requires_grad_() for name, tensor in student.items()}
    again, count_again = loss(
        inputs, {name: spoiled(name, tensor, -1e30) for name, tensor in teacher.items()}, batch_of(task, PADDED)
    )
    assert (float(again.detach()), float(count_again)) == pytest.approx((float(value), float(count)))
    for gradient in torch.autograd.grad(again, list(inputs.values())):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("node", "task"),
    [pytest.param(*found, id=name) for name, found in TERMS.items()
     if found[0]._target_.rpartition(".")[2] not in HELD],
)  # fmt: skip
def test_gradients(node: DictConfig, task: str) -> None:
    loss = made(node, task)
    student, teacher = both(loss, task)
    inputs = [tensor.requires_grad_() for tensor in student.values()]
    assert gradcheck(lambda *xs: loss(dict(zip(student, xs, strict=True)), teacher, batch_of(task))[0], inputs,
                     fast_mode=True)  # fmt: skip


@every_term
def test_bfloat16_states_give_what_they_give_as_float32(node: DictConfig, task: str) -> None:
    narrow = config(24) if node._target_.endswith(PROJECTED) else config()
    loss = made(node, task, narrow)
    student = signals(loss.student_signals, OUTPUTS[task], 1, narrow.hidden_size)
    teacher = signals(loss.teacher_signals, OUTPUTS[task], 2)
    rounded = [{name: t.bfloat16() for name, t in each.items()} for each in (student, teacher)]
    value, _ = loss(*rounded, batch_of(task))
    expected, _ = loss(*({name: t.float() for name, t in each.items()} for each in rounded), batch_of(task))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def rows_of(tensors: dict[str, Any], rows: slice) -> dict[str, Any]:
    return {name: value[rows] if isinstance(value, Tensor) else rows_of(value, rows) for name, value in tensors.items()}


@every_term
def test_a_batch_is_the_sum_of_its_parts(node: DictConfig, task: str) -> None:
    """So two ranks, and accumulated batches, are one: each part is divided by the global count."""
    loss = made(node, task)
    student, teacher = both(loss, task)
    found = [
        loss(rows_of(student, rows), rows_of(teacher, rows), rows_of(batch_of(task), rows))
        for rows in (slice(None), slice(0, 3), slice(3, 4))
    ]
    (whole, rows), *parts = found
    assert float(rows) == sum(float(count) for _, count in parts)
    alike = float(sum(value for value, _ in parts)) == pytest.approx(float(whole), rel=1e-9)
    assert alike != (node._target_.rpartition(".")[2] in COUPLED)


@every_term
def test_nothing_comes_back_to_the_teacher(node: DictConfig, task: str) -> None:
    loss = made(node, task)
    student, teacher = both(loss, task)
    value, _ = loss({name: t.requires_grad_() for name, t in student.items()}, teacher, batch_of(task))
    assert value.requires_grad
    assert not any(tensor.requires_grad for tensor in teacher.values())
