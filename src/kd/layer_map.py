"""Which teacher layer goes with which student layer. Layers are counted from 1; 0 is the embedding output."""

from __future__ import annotations

from collections.abc import Sequence

from kd.errors import UserError

Pairs = list[tuple[int, int]]
DISTILBERT = (1, 3, 5, 8, 10, 12)


def uniform(count: int, of: int) -> list[int]:
    """``count`` of ``of`` layers, evenly spread and ending with the last: 2, 4, 6 for 3 of 6.

    Where ``of / count`` is no whole number the nearest layer is taken, halves upwards: 2, 3, 5, 6 for 4 of 6.
    """
    return [(2 * i * of + count) // (2 * count) for i in range(1, count + 1)]


def kept_layers(
    keep: str | Sequence[int], num_layers: int | None, teacher_layers: int, key: str = "student.num_layers"
) -> list[int]:
    """The teacher's layers that a student is made of. Raises UserError if that cannot be.

    ``key`` is the setting that says how many there are. ``distilbert`` is what Sanh et al. 2019 took of twelve layers
    (section 3; the published scripts), one of two but for the last two.
    """
    if not isinstance(keep, str):
        kept = [int(layer) for layer in keep]
        wrong = [layer for layer in kept if not 1 <= layer <= teacher_layers]
        if wrong or not kept or kept != sorted(set(kept)):
            raise UserError(
                f"student.keep={kept}: layers rise, without repeats, from 1 to the teacher's {teacher_layers}."
            )
        if num_layers is not None and num_layers != len(kept):
            raise UserError(
                f"student.keep={kept} names {len(kept)} layers but {key}={num_layers}: add {key}={len(kept)}."
            )
        return kept
    if num_layers is None or not 1 <= num_layers <= teacher_layers:
        raise UserError(f"{key}={num_layers}: the teacher has {teacher_layers} layers, give 1 to {teacher_layers}.")
    if keep == "distilbert":
        if (num_layers, teacher_layers) != (len(DISTILBERT), 12):
            raise UserError(
                f"student.keep=distilbert takes the layers {', '.join(map(str, DISTILBERT))} of twelve, and here it is "
                f"{num_layers} of {teacher_layers}: take a teacher of 12 layers with {key}={len(DISTILBERT)}, or "
                "student.keep=uniform."
            )
        return list(DISTILBERT)
    if keep == "first":
        return list(range(1, num_layers + 1))
    if keep == "last":
        return list(range(teacher_layers - num_layers + 1, teacher_layers + 1))
    return uniform(num_layers, teacher_layers)


def patient_pairs(layers: str | Sequence[Sequence[int]], student: int, teacher: int) -> Pairs:
    """PKD's pairs (Sun et al. 2019, section 3.2): the last layer is left out, the logits already carry it.

    ``skip`` takes every N/M-th teacher layer (2, 4, 6, 8, 10 for 6 of 12), ``last`` the top ones (7 to 11).
    """
    if not isinstance(layers, str):
        return checked_pairs(layers, student, teacher)
    if layers not in ("skip", "last"):
        raise UserError(f"layers={layers}: give skip, last, or pairs [student layer, teacher layer].")
    if student < 2:
        raise UserError(
            "method=pkd compares the layers below the last, and this student has one layer only: "
            "take method=feature or method=logit, or a deeper student."
        )
    if layers == "last":
        return checked_pairs([(i, teacher - student + i) for i in range(1, student)], student, teacher)
    return checked_pairs(list(zip(range(1, student), spread(student, teacher), strict=False)), student, teacher)


def hidden_pairs(layers: str | Sequence[Sequence[int]], student: int, teacher: int) -> Pairs:
    """Every student layer with the teacher's ``i * N / M``-th (TinyBERT, section 3.1), or the given pairs."""
    if not isinstance(layers, str):
        return checked_pairs(layers, student, teacher)
    if layers != "uniform":
        raise UserError(f"layers={layers}: give uniform, or pairs [student layer, teacher layer].")
    return checked_pairs(list(zip(range(1, student + 1), spread(student, teacher), strict=True)), student, teacher)


def attention_pairs(layers: str | Sequence[Sequence[int]], student: int, teacher: int) -> Pairs:
    """``last``: the last layer with the last (MiniLM); ``uniform`` or pairs as for hidden states."""
    if isinstance(layers, str) and layers not in ("last", "uniform"):
        raise UserError(f"layers={layers}: give last, uniform, or pairs [student layer, teacher layer].")
    return [(student, teacher)] if layers == "last" else hidden_pairs(layers, student, teacher)


def spread(student: int, teacher: int) -> list[int]:
    """The teacher's layer for each of the student's, who may be deeper, but not by more than twice."""
    if student > 2 * teacher:
        raise UserError(
            f"A student of {student} layers is too deep to have each paired with one of the teacher's {teacher}: name "
            "the pairs, such as layers=[[1,1],[2,2]], or take method=logit."
        )
    return uniform(student, teacher)


def checked_pairs(pairs: Sequence[Sequence[int]], student: int, teacher: int) -> Pairs:
    for pair in pairs:
        if len(pair) != 2 or not 1 <= pair[0] <= student or not 1 <= pair[1] <= teacher:
            raise UserError(
                f"layers={[list(p) for p in pairs]}: the pair {list(pair)} does not fit a student of {student} and a "
                f"teacher of {teacher} layers. Pairs are [student layer, teacher layer], counted from 1."
            )
    if not pairs:
        raise UserError("layers=[]: name at least one pair [student layer, teacher layer].")
    return [(int(i), int(j)) for i, j in pairs]
