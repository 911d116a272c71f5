"""Losses of a batch: relations of its rows (V7) and contrast (V8); over ranks, what each is documented to be."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from ranks import on_two_ranks
from torch import Tensor

from kd.errors import UserError
from kd.losses import ContrastiveLoss, Loss, RelationalAngleLoss, RelationalDistanceLoss, SimilarityLoss
from kd.tasks import Classification, FeatureExtraction, MaskedLM, Multilabel, Ordinal, Regression, Task

Numbers = NDArray[np.float64]
TASK = Classification(["a", "b", "c"])
DTYPES = [(torch.float64, 1e-6), (torch.float32, 1e-4)]
RELATIONAL = [RelationalDistanceLoss(1.0), RelationalAngleLoss(1.0), SimilarityLoss(1.0)]
ZS, ZT = [[1, 0], [0, 1], [1, 1]], [[1, 0.2], [0.1, 1], [1, 0.8]]


def config(layers: int, width: int) -> Any:
    return SimpleNamespace(num_hidden_layers=layers, hidden_size=width)


def set_up(loss: Loss, student: int = 2, teacher: int = 2, task: Task = TASK) -> Loss:
    loss.setup(config(2, student), config(4, teacher), task)
    assert str(loss.formula).isascii()
    return loss


def batch_value(loss: Loss, student: Tensor, teacher: Tensor, labels: Any = None) -> Tensor:
    total, count = loss({"cls/2": student}, {"cls/4": teacher}, {"labels": labels})
    assert count == len(student)
    value: Tensor = total / count
    return value


def rows(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("dtype", "within"), DTYPES)
def test_v7_relational_distance(dtype: torch.dtype, within: float) -> None:
    student, teacher = torch.tensor([[0, 0], [3, 4], [6, 8]]), torch.tensor([[0, 0], [1, 0], [0, 1]])
    value = batch_value(set_up(RelationalDistanceLoss(1.0)), student.to(dtype), 5 * teacher.to(dtype))
    assert abs(float(value.detach()) - 0.07169914) < within  # whatever the scale of a space


def huber(difference: Numbers) -> Numbers:
    size = np.abs(difference)
    return np.where(size < 1, size**2 / 2, size - 0.5)


def angle_by_hand(student: Numbers, teacher: Numbers) -> float:
    """Park et al. 2019, equations 6 to 8, triple by triple."""

    def cosine(x: Numbers, i: int, j: int, k: int) -> float:
        one, other = x[i] - x[j], x[k] - x[j]
        return 0.0 if j in (i, k) else float(one @ other / np.sqrt((one @ one) * (other @ other)))

    count = len(student)
    triples = [(i, j, k) for i in range(count) for j in range(count) for k in range(count)]
    return float(np.mean([huber(np.array(cosine(student, *t) - cosine(teacher, *t))) for t in triples]))


def similarity_by_hand(student: Numbers, teacher: Numbers) -> float:
    """Tung and Mori 2019, equations 2 to 4."""
    grams = []
    for x in (student, teacher):
        gram = x @ x.T
        grams.append(gram / np.linalg.norm(gram, axis=1, keepdims=True))
    return float(np.linalg.norm(grams[0] - grams[1], "fro") ** 2 / len(student) ** 2)


def distance_by_hand(student: Numbers, teacher: Numbers) -> float:
    spaces = []
    for x in (student, teacher):
        found = np.array([[np.sqrt(((a - b) ** 2).sum()) for b in x] for a in x])
        spaces.append(found / found[found > 0].mean())
    return float(huber(spaces[0] - spaces[1]).mean())


@pytest.mark.parametrize(
    ("loss", "by_hand"),
    zip(RELATIONAL, [distance_by_hand, angle_by_hand, similarity_by_hand], strict=True),
    ids=lambda x: type(x).__name__ if isinstance(x, Loss) else "",
)
def test_a_second_implementation_agrees_for_different_widths(loss: Loss, by_hand: Any) -> None:
    student, teacher = rows(5, 3, 0), rows(5, 7, 1)
    value = batch_value(set_up(loss, 3, 7), student, teacher)
    assert float(value) == pytest.approx(by_hand(student.numpy(), teacher.numpy()), abs=1e-12)
    assert not list(loss.parameters())


@pytest.mark.parametrize("loss", [*RELATIONAL, ContrastiveLoss(1.0, 0.07)], ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_equal_rows_have_finite_values_and_gradients(loss: Loss, count: int) -> None:
    student = rows(1, 3, 0).repeat(count, 1).requires_grad_()
    teacher = rows(count, 3, 1)
    value = batch_value(set_up(loss, 3, 3), student, teacher, torch.arange(count))
    (gradient,) = torch.autograd.grad(value, student)
    assert torch.isfinite(value)
    assert gradient.abs().max() < 100  # the smallest difference by rounding has no direction
    if count == 1:
        assert float(value.detach()) == 0
        assert not gradient.any()


def test_rounding_makes_no_angle() -> None:
    student = torch.cat([rows(3, 4, 0), rows(1, 4, 0) * (1 + 1e-12)]).requires_grad_()
    teacher = rows(4, 4, 1)
    value = batch_value(set_up(RelationalAngleLoss(1.0), 4, 4), student, teacher)
    assert float(torch.autograd.grad(value, student)[0].abs().max()) < 10


@pytest.mark.parametrize(("dtype", "within"), DTYPES)
@pytest.mark.parametrize(
    ("temperature", "symmetric", "expected"),
    [(0.5, False, 0.66373835), (0.5, True, 0.66821498), (0.07, False, 0.06471059), (0.07, True, 0.06673130)],
)
def test_v8_contrastive(
    dtype: torch.dtype, within: float, temperature: float, symmetric: bool, expected: float
) -> None:
    loss = set_up(ContrastiveLoss(1.0, temperature, symmetric=symmetric))
    value = batch_value(loss, torch.tensor(ZS, dtype=dtype), torch.tensor(ZT, dtype=dtype), torch.arange(3))
    assert abs(float(value.detach()) - expected) < within


def test_rows_of_the_same_label_are_no_negatives() -> None:
    """Rows 0 and 2 are of one label: row 0 is told from row 1 alone, row 1 from both others."""
    student, teacher = np.array(ZS, dtype=float), np.array(ZT)
    cosine = (student @ teacher.T) / np.outer(np.linalg.norm(student, axis=1), np.linalg.norm(teacher, axis=1)) / 0.5
    seen = [[0, 1], [0, 1, 2], [1, 2]]
    terms = [np.log(np.exp(cosine[b, others]).sum()) - cosine[b, b] for b, others in enumerate(seen)]
    several = torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 0, 1]])
    kinds: list[tuple[Task, Tensor]] = [
        (TASK, torch.tensor([0, 1, 0])), (Ordinal(["a", "b"]), torch.tensor([0, 1, 0])),
        (Multilabel(["a", "b", "c"]), several),
    ]  # fmt: skip
    both = torch.tensor(student), torch.tensor(teacher)
    for task, labels in kinds:
        value = batch_value(set_up(ContrastiveLoss(1.0, 0.5), task=task), *both, labels)
        assert float(value) == pytest.approx(np.mean(terms), abs=1e-12)
        kept = batch_value(set_up(ContrastiveLoss(1.0, 0.5, same_label="keep"), task=task), *both, labels)
        assert float(kept) == pytest.approx(0.66373835, abs=1e-6)


@pytest.mark.parametrize("task", [Regression(["x"]), MaskedLM(), FeatureExtraction()], ids=lambda t: type(t).__name__)
def test_labels_that_are_no_kinds_leave_nothing_out(task: Task) -> None:
    labels = torch.zeros(17 if isinstance(task, MaskedLM) else 3)
    value = batch_value(set_up(ContrastiveLoss(1.0, 0.5), task=task), torch.tensor(ZS).double(),
                        torch.tensor(ZT).double(), labels)  # fmt: skip
    assert float(value) == pytest.approx(0.66373835, abs=1e-6)


def test_contrastive_projects_and_refuses() -> None:
    (weight,) = set_up(ContrastiveLoss(1.0, 0.07), 4, 6).parameters()
    assert weight.shape == (6, 4)
    with pytest.raises(UserError, match="project=false"):
        set_up(ContrastiveLoss(1.0, 0.07, project=False), 4, 6)
    with pytest.raises(UserError, match="same_label=drop: say exclude or keep"):
        ContrastiveLoss(1.0, 0.07, same_label="drop")
    with pytest.raises(UserError, match="temperature=0 must be above 0"):
        ContrastiveLoss(1.0, 0)


SHARES = [slice(0, 3), slice(3, 8)]  # of eight rows, for two ranks
OVER_RANKS: dict[str, Loss] = {
    "contrastive": ContrastiveLoss(1.0, 0.5), "symmetric": ContrastiveLoss(1.0, 0.5, symmetric=True),
    "distance": RelationalDistanceLoss(1.0), "angle": RelationalAngleLoss(1.0), "similarity": SimilarityLoss(1.0),
}  # fmt: skip


def sum_and_gradient(loss: Loss, share: slice) -> tuple[Tensor, Tensor]:
    """Of those of eight rows: the sum, and its gradient at the student's."""
    student = rows(8, 4, 0)[share].requires_grad_()
    batch = {"labels": torch.tensor([0, 1, 2, 0, 1, 1, 2, 2])[share]}
    value, _ = set_up(loss, 4, 4)({"cls/2": student}, {"cls/4": rows(8, 4, 1)[share]}, batch)
    return value.detach(), torch.autograd.grad(value, student)[0]


def of_rank(rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: sum_and_gradient(loss, SHARES[rank]) for name, loss in OVER_RANKS.items()}


@pytest.mark.slow
def test_over_two_ranks(tmp_path: Path) -> None:
    """Unequal numbers of rows. The contrast of student to teacher is that of one rank with all rows; the relations
    are those of each rank's own rows; the symmetric contrast is one way of each.
    """
    first, second = on_two_ranks(of_rank, tmp_path)
    for name, loss in OVER_RANKS.items():
        found = first[name][0] + second[name][0], torch.cat([first[name][1], second[name][1]])
        whole = sum_and_gradient(loss, slice(0, 8))
        parts = [sum_and_gradient(loss, share) for share in SHARES]
        apart = parts[0][0] + parts[1][0], torch.cat([parts[0][1], parts[1][1]])
        assert not torch.allclose(whole[0], apart[0], rtol=1e-3)
        if name == "symmetric":
            student, teacher, labels = rows(8, 4, 0), rows(8, 4, 1), torch.tensor([0, 1, 2, 0, 1, 1, 2, 2])
            turned = sum(
                batch_value(set_up(OVER_RANKS["contrastive"], 4, 4), teacher[s], student[s], labels[s]) * len(labels[s])
                for s in SHARES
            )
            expected = (sum_and_gradient(OVER_RANKS["contrastive"], slice(0, 8))[0] + turned) / 2
            torch.testing.assert_close(found[0], expected)
        else:
            torch.testing.assert_close(found, whole if name == "contrastive" else apart)
