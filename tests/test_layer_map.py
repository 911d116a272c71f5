from __future__ import annotations

from typing import Any

import pytest

from kd.errors import UserError
from kd.layer_map import attention_pairs, hidden_pairs, kept_layers, patient_pairs, uniform


def test_uniform_ends_with_the_last_layer() -> None:
    assert uniform(3, 6) == [2, 4, 6]
    assert uniform(4, 6) == [2, 3, 5, 6]
    assert uniform(6, 12) == [2, 4, 6, 8, 10, 12]
    assert all(uniform(m, n)[-1] == n for n in range(1, 25) for m in range(1, n + 1))
    assert all(len(set(uniform(m, n))) == m for n in range(1, 25) for m in range(1, n + 1))


def test_kept_layers() -> None:
    assert kept_layers("uniform", 3, 6) == [2, 4, 6]
    assert kept_layers("first", 2, 6) == [1, 2]
    assert kept_layers("last", 2, 6) == [5, 6]
    assert kept_layers([1, 3, 5], None, 6) == [1, 3, 5]


@pytest.mark.parametrize(
    ("keep", "number", "says"),
    [("uniform", 7, "has 6 layers"), ([1, 9], 2, "from 1 to the teacher's 6"), ([3, 1], 2, "rise"),
     ([1, 2], 3, "student.num_layers=2"), ([], None, "rise")],
)  # fmt: skip
def test_kept_layers_that_cannot_be(keep: list[int] | str, number: int | None, says: str) -> None:
    with pytest.raises(UserError, match=says):
        kept_layers(keep, number, 6)


def test_patient_pairs_are_the_papers() -> None:
    assert patient_pairs("skip", 6, 12) == [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10)]
    assert patient_pairs("last", 6, 12) == [(1, 7), (2, 8), (3, 9), (4, 10), (5, 11)]
    assert patient_pairs("skip", 3, 12) == [(1, 4), (2, 8)]
    assert patient_pairs("last", 3, 12) == [(1, 10), (2, 11)]
    assert patient_pairs("skip", 8, 12) == [(1, 2), (2, 3), (3, 5), (4, 6), (5, 8), (6, 9), (7, 11)]
    assert patient_pairs("skip", 8, 24) == [(i, 3 * i) for i in range(1, 8)]
    assert patient_pairs("skip", 4, 2) == [(1, 1), (2, 1), (3, 2)]
    assert patient_pairs([[1, 2]], 3, 12) == [(1, 2)]
    with pytest.raises(UserError, match="one layer only"):
        patient_pairs("skip", 1, 12)
    with pytest.raises(UserError, match=r"the pair \[4, 2\] does not fit"):
        patient_pairs([[4, 2]], 3, 12)


def test_hidden_pairs() -> None:
    assert hidden_pairs("uniform", 4, 12) == [(1, 3), (2, 6), (3, 9), (4, 12)]
    assert hidden_pairs("uniform", 8, 12) == [(1, 2), (2, 3), (3, 5), (4, 6), (5, 8), (6, 9), (7, 11), (8, 12)]
    assert hidden_pairs("uniform", 8, 24) == [(i, 3 * i) for i in range(1, 9)]


@pytest.mark.parametrize(
    ("pairs", "word", "other"), [(patient_pairs, "skip", "uniform"), (hidden_pairs, "uniform", "skip")]
)
def test_a_student_of_more_than_twice_the_teachers_depth_wants_named_pairs(pairs: Any, word: str, other: str) -> None:
    with pytest.raises(UserError, match="12 layers is too deep .* the teacher's 4: name the pairs"):
        pairs(word, 12, 4)
    with pytest.raises(UserError, match=f"layers={other}: give"):
        pairs(other, 3, 6)
    assert pairs([[12, 4]], 12, 4) == [(12, 4)]


def test_attention_pairs() -> None:
    assert attention_pairs("last", 3, 12) == [(3, 12)]
    assert attention_pairs("uniform", 3, 12) == [(1, 4), (2, 8), (3, 12)]
    assert attention_pairs([[3, 10]], 3, 12) == [(3, 10)]
    with pytest.raises(UserError, match="give last, uniform, or pairs"):
        attention_pairs("skip", 3, 12)
