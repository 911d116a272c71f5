"""Attention and relation losses against vectors worked out by hand (V4, V5) and against numpy, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kd.architecture import architecture
from kd.build import build_losses, model_configs
from kd.command_line import compose
from kd.errors import UserError
from kd.losses import AttentionKLLoss, AttentionScoreLoss, Loss, RelationLoss, SharedHiddenLoss
from kd.tasks import Classification

TASK = Classification(["a", "b"])
DTYPES = [(torch.float64, 1e-6), (torch.float32, 1e-4)]
LENGTHS: Sequence[int] = (6, 3, 1, 5)


def config(layers: int = 2, width: int = 24, heads: int = 4, **more: Any) -> Any:
    return SimpleNamespace(num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, **more)


def batch_of(lengths: Sequence[int], longest: int) -> dict[str, Any]:
    return {"student": {"attention_mask": (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()}}


def set_up(loss: Loss, student: Any, teacher: Any) -> Loss:
    loss.setup(student, teacher, TASK)
    assert loss.formula in loss.described()
    return loss


def mean(loss: Loss, student: dict[str, Tensor], teacher: dict[str, Tensor], batch: dict[str, Any]) -> float:
    value, count = loss(student, teacher, batch)
    return float(value.detach() / count)


# numpy, one row and one head at a time, on the real tokens alone


def np_softmax(scores: Any) -> Any:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def np_kl(student: Any, teacher: Any) -> Any:
    """Of the rows of two matrices of scores."""
    p, q = np_softmax(teacher), np_softmax(student)
    return (p * (np.log(p) - np.log(q))).sum(-1)


def np_relations(states: Any, heads: int) -> list[Any]:
    """States ``[A, n, d]`` of n real tokens to a list of scores ``[n, n]``, one for each relation head."""
    side_by_side = np.concatenate(list(states), axis=-1)
    width = side_by_side.shape[-1] // heads
    cut = [side_by_side[:, i * width : (i + 1) * width] for i in range(heads)]
    return [part @ part.T / np.sqrt(width) for part in cut]


def np_mean(rows: list[Any], unit: str) -> float:
    """``rows``: for each row of the batch its values, one for each real token."""
    return float(np.mean(np.concatenate(rows) if unit == "tokens" else [np.mean(row) for row in rows]))


def np_relation_loss(student: Any, teacher: Any, heads: int, unit: str) -> float:
    """Of one kind; ``[B, A, L, d]`` of any widths."""
    rows = []
    for b, n in enumerate(LENGTHS):
        ours, theirs = (np_relations(states[b, :, :n], heads) for states in (student, teacher))
        rows.append(np.mean([np_kl(s, t) for s, t in zip(ours, theirs, strict=True)], axis=0))
    return np_mean(rows, unit)


def np_attention_loss(student: Any, teacher: Any, unit: str, kl: bool) -> float:
    rows = []
    for b, n in enumerate(LENGTHS):
        by_head = []
        for ours, theirs in zip(student[b, :, :n, :n], teacher[b, :, :n, :n], strict=True):
            by_head.append(np_kl(ours, theirs) if kl else ((ours - theirs) ** 2).mean(-1))
        rows.append(np.mean(by_head, axis=0))
    return np_mean(rows, unit)


def random_signals(seed: int, layers: int, width: int, heads: int, longest: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return 2 * torch.randn(len(LENGTHS), heads, *shape, generator=generator, dtype=torch.float64)

    kinds = ("query", "key", "value")
    states = {f"{kind}/{k}": drawn(longest, width // heads) for kind in kinds for k in range(1, layers + 1)}
    return states | {f"attention/{k}": drawn(longest, longest) for k in range(1, layers + 1)}


@pytest.mark.parametrize("unit", ["tokens", "examples"])
@pytest.mark.parametrize("heads", [1, 2, 8])
def test_relations_are_numpys(unit: str, heads: int) -> None:
    """Unlike widths and numbers of heads, two pairs of layers, rows of unlike length."""
    student, teacher = random_signals(0, 2, 24, 4), random_signals(1, 3, 32, 2)
    loss = set_up(
        RelationLoss(1.0, [[1, 2], [2, 3]], ["query", "key", "value"], relation_heads=heads, unit=unit),
        config(2, 24, 4), config(3, 32, 2),
    )  # fmt: skip
    expected = sum(
        np_relation_loss(student[f"{kind}/{i}"].numpy(), teacher[f"{kind}/{j}"].numpy(), heads, unit)
        for i, j in ((1, 2), (2, 3)) for kind in ("query", "key", "value")
    )  # fmt: skip
    assert mean(loss, student, teacher, batch_of(LENGTHS, 6)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("unit", ["tokens", "examples"])
@pytest.mark.parametrize("made", [AttentionKLLoss, AttentionScoreLoss])
def test_attention_is_numpys(unit: str, made: Any) -> None:
    student, teacher = random_signals(0, 2, 24, 4), random_signals(1, 4, 32, 4)
    loss = set_up(made(1.0, layers="uniform", unit=unit), config(2, 24, 4), config(4, 32, 4))
    expected = sum(
        np_attention_loss(
            student[f"attention/{i}"].numpy(), teacher[f"attention/{j}"].numpy(), unit, made is AttentionKLLoss
        )
        for i, j in ((1, 2), (2, 4))
    )
    assert mean(loss, student, teacher, batch_of(LENGTHS, 6)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("unit", ["tokens", "examples"])
@pytest.mark.parametrize(("dtype", "within"), DTYPES)
def test_v4_attention(dtype: torch.dtype, within: float, unit: str) -> None:
    student = torch.tensor([[1, 0, 0.3], [0, 2, 0.1], [0.5, 0.5, 0.5]], dtype=dtype)
    teacher = torch.tensor([[2, 0, -1], [0, 1, 4], [1, -1, 0]], dtype=dtype)
    signals = {"attention/1": student[None, None]}, {"attention/1": teacher[None, None]}
    one = config(1, 3, 1)
    for loss, expected in (
        (AttentionKLLoss(1.0, "last", unit), 0.07486925),
        (AttentionScoreLoss(1.0, "last", unit), 0.5),
    ):
        assert abs(mean(set_up(loss, one, one), *signals, batch_of((2,), 3)) - expected) < within


@pytest.mark.parametrize(("dtype", "within"), DTYPES)
def test_v5_relations(dtype: torch.dtype, within: float) -> None:
    """Two relation heads of both models, whatever number of attention heads they have."""
    student = torch.tensor([[1, 0, 0, 1], [0, 1, 1, 0]], dtype=dtype)
    teacher = torch.tensor([[1, 1, 0, 0, 2, 0], [0, 1, 1, 0, 0, 1]], dtype=dtype)
    for heads in (1, 2):
        ours, theirs = ({"query/1": x.view(1, 2, heads, -1).transpose(1, 2)} for x in (student, teacher))
        loss = set_up(RelationLoss(1.0, "last", ["query"], relation_heads=2), config(1, 4, heads), config(1, 6, heads))
        assert abs(mean(loss, ours, theirs, batch_of((2,), 2)) - 0.04177997) < within


def test_a_batch_in_two_halves_gives_the_same_sum_and_count() -> None:
    """What accumulation and ranks rely on."""
    student, teacher = random_signals(0, 1, 24, 4), random_signals(1, 1, 24, 4)
    both = config(1, 24, 4), config(1, 24, 4)
    for loss in (
        RelationLoss(1.0, "last", ["value"], 3),
        AttentionKLLoss(1.0, "last"),
        AttentionScoreLoss(1.0, "last"),
    ):
        set_up(loss, *both)
        whole = loss(student, teacher, batch_of(LENGTHS, 6))
        halves = [
            loss(
                {k: v[at] for k, v in student.items()}, {k: v[at] for k, v in teacher.items()}, batch_of(LENGTHS[at], 6)
            )
            for at in (slice(2), slice(2, 4))
        ]
        for place in (0, 1):
            assert float(sum(half[place] for half in halves)) == pytest.approx(float(whole[place]), rel=1e-12)


def test_products_stay_float32_under_autocast() -> None:
    student, teacher = (
        {name: tensor.float() for name, tensor in random_signals(seed, 1, 24, 4).items()} for seed in (0, 1)
    )
    loss = set_up(RelationLoss(1.0, "last", ["value"], 3), config(1), config(1))
    plain = loss(student, teacher, batch_of(LENGTHS, 6))[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(student, teacher, batch_of(LENGTHS, 6))[0], plain)


def test_relation_heads_that_do_not_divide_are_refused_with_those_that_do() -> None:
    loss = RelationLoss(1.0, "last", ["query"], relation_heads=12)
    with pytest.raises(UserError, match="16 of the student and 24 of the teacher: take one of 1, 2, 4, 8."):
        loss.setup(config(2, 16), config(2, 24), TASK)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"relations": ["query", "vaule"]}, "Did you mean 'value'"),
        ({"relations": []}, "at most once, and one of them"),
        ({"relations": ["key", "key"]}, "at most once"),
        ({"unit": "token"}, "Known: tokens, examples"),
        ({"relation_heads": 0}, "above 0"),
        ({"layers": "lasst"}, "layers=lasst"),
    ],
)
def test_arguments_that_cannot_be(arguments: dict[str, Any], says: str) -> None:
    whole: dict[str, Any] = {"layers": "last", "relations": ["query"], "relation_heads": 2} | arguments
    with pytest.raises(UserError, match=says):
        RelationLoss(1.0, **whole).setup(config(), config(), TASK)


@pytest.mark.parametrize(
    "loss", [AttentionKLLoss(1.0, "last"), AttentionScoreLoss(1.0, "last"), RelationLoss(1.0, "last", ["value"], None)]
)
def test_heads_that_differ_are_refused(loss: Loss) -> None:
    with pytest.raises(UserError, match="the student has 2, its teacher 4.*method=minilmv2"):
        loss.setup(config(heads=2), config(heads=4), TASK)


def test_sliding_windows_are_refused_for_scores_and_fine_for_relations() -> None:
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    student, teacher = config(5, layer_types=kinds), config(4, layer_types=kinds[:4])
    with pytest.raises(UserError, match="layer 5 of the student .* global layers are 1, 4"):
        AttentionKLLoss(1.0, "last").setup(student, teacher, TASK)
    with pytest.raises(UserError, match="layer 2 of the teacher .* global layers are 1, 4"):
        AttentionScoreLoss(1.0, [[1, 1], [4, 2]]).setup(student, teacher, TASK)
    set_up(AttentionKLLoss(1.0, [[4, 1]]), student, teacher)
    set_up(RelationLoss(1.0, "last", ["query"], 4), student, teacher)


def test_what_a_teachers_layer_attends_to_goes_with_the_layer() -> None:
    """Layers 7, 15 and 22 of ModernBERT, of which the second has a window."""
    cfg = compose(["teacher=modernbert_base", "student=layers", "method=attention_kl"])
    assert architecture(cfg, "student")["num_hidden_layers"] == 3
    assert model_configs(cfg, TASK)[1].layer_types == ["full_attention", "sliding_attention", "full_attention"]
    assert build_losses(cfg, TASK)["attention"].student_signals == ("attention/3",)
    cfg = compose(["teacher=modernbert_base", "student=layers", "method=attention"])
    with pytest.raises(UserError, match=r"layer 2 of the student .* global layers are 1, 3"):
        build_losses(cfg, TASK)


def test_one_map_serves_embeddings_and_hidden_states() -> None:
    """Against numpy, over the real tokens of rows of unlike length."""
    loss = set_up(SharedHiddenLoss(1.0, [[1, 2], [2, 3]]), config(2, 4), config(3, 6)).double()
    weight, bias = loss.parameters()
    with torch.no_grad():
        bias.copy_(torch.arange(6.0))
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        {f"hidden/{k}": torch.randn(4, 6, width, generator=generator, dtype=torch.float64) for k in range(4)}
        for width in (4, 6)
    )
    expected, w = 0.0, weight.detach().numpy()
    for i, j in ((0, 0), (1, 2), (2, 3)):
        ours, theirs = student[f"hidden/{i}"].numpy(), teacher[f"hidden/{j}"].numpy()
        tokens = [
            np.mean((w @ ours[b, t] + np.arange(6) - theirs[b, t]) ** 2)
            for b, n in enumerate(LENGTHS) for t in range(n)
        ]  # fmt: skip
        expected += float(np.mean(tokens))
    assert mean(loss, student, teacher, batch_of(LENGTHS, 6)) == pytest.approx(expected, rel=1e-9)
    assert not list(set_up(SharedHiddenLoss(1.0, "uniform"), config(2, 6), config(3, 6)).parameters())


def test_tinybert_has_its_two_stages_in_one_run() -> None:
    cfg = compose(["teacher=bert_base", "student=layers", "student.num_layers=4", "method=tinybert"])
    losses = build_losses(cfg, TASK)
    weights = {}
    for share in (0.0, 0.7, 0.75, 1.0):
        for loss in losses.values():
            loss.at(share)
        weights[share] = {name: loss.weight for name, loss in losses.items()}
    first = {"embedding": 1, "hidden": 1, "attention": 1, "soft": 0}
    then = {name: 1 - weight for name, weight in first.items()}
    assert weights == {0.0: first, 0.7: first, 0.75: then, 1.0: then}
    assert losses["attention"].teacher_signals == tuple(f"attention/{k}" for k in (3, 6, 9, 12))
