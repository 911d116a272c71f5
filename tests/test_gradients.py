"""Each term's share of the gradient, and weights that follow from it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import model
from test_lit_module import every_loss, set_up, settings

from kd.datamodule import TextDataModule
from kd.fit import fit
from kd.gradients import MOST, GradientWatch, balanced, gradient_norm
from kd.lit_module import FrozenTeacher
from kd.tasks import Classification


def test_the_norm_of_a_terms_gradient() -> None:
    one, two, idle = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    mean = 3 * one[0] + 4 * two[1]
    assert gradient_norm(mean, [one, two, idle]) == pytest.approx(5)
    assert one.grad is None
    torch.autograd.backward(mean)  # the graph is still there


def test_balanced_weights_are_shares_of_an_unchanged_sum() -> None:
    norms, weights = {"a": 10.0, "b": 0.2, "off": 3.0}, {"a": 1.0, "b": 3.0}
    factors = balanced(norms, weights)
    sizes = {name: weights[name] * factors[name] * norms[name] for name in weights}
    assert sizes["b"] / (sizes["a"] + sizes["b"]) == pytest.approx(0.75)
    assert sum(sizes.values()) == pytest.approx(1.0 * 10 + 3.0 * 0.2)
    assert "off" not in factors


def test_a_term_that_is_at_its_least_keeps_its_weight_and_none_is_blown_up() -> None:
    weights = {"a": 1.0, "b": 1.0}
    assert balanced({"a": 1.0, "b": 0.0}, weights) == {"a": 1.0, "b": 1.0}
    assert balanced({"a": 0.0, "b": 0.0}, weights) == {"a": 1.0, "b": 1.0}
    assert balanced({"a": 1.0, "b": 0.002}, weights)["b"] == 100
    assert balanced({}, {}) == {}


def test_a_norm_that_is_no_number_is_not_counted() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    watch = GradientWatch(balance=True)
    for factor in (1.0, math.nan, 3.0):
        watch.look({"a": factor * weight.sum(), "b": weight.sum()}, {"a": 1.0, "b": 1.0}, [weight])
    assert watch.norms == {"a": 2.0, "b": 1.0}
    assert watch.factors == {"a": 0.75, "b": 1.5}


def test_it_looks_again_when_a_term_was_switched_on() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    watch, off, on = GradientWatch(), {"a": 1.0, "b": 0.0}, {"a": 0.5, "b": 1.0}
    terms = {"a": weight.sum(), "b": weight.sum()}
    assert watch.due(0, True, off)
    assert not watch.due(0, False, off)
    watch.look(terms, off, [weight])
    assert watch.warnings(0) == []  # alone, all of the gradient is its own
    assert not watch.due(7, True, off)
    assert watch.due(7, True, on)
    watch.look(terms, on, [weight])
    assert watch.shares == {"a": [1.0, pytest.approx(1 / 3)], "b": [0.0, pytest.approx(2 / 3)]}
    assert watch.due(100, True, on)


def test_it_warns_once_of_a_term_that_gives_nothing_and_of_one_that_gives_all() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    watch = GradientWatch()
    for _ in range(2):
        watch.look({"big": 1000 * weight.sum(), "small": weight.sum()}, {"big": 1.0, "small": 1.0}, [weight])
        found = watch.warnings(100)
        assert len(found) in (0, 2)
        if found:
            assert "'big' gives 99.90% of the gradient at step 100: the others hardly matter" in found[0]
            assert "'small' gives 0.10%" in found[1]
            assert "method.small.weight" in found[1]
    assert watch.warned == {"big", "small"}
    assert not found
    assert watch.described() == {"shares of the gradient": "big 99.9%, small 0.1%"}
    balancing = GradientWatch(balance=True)
    balancing.look({"big": 1000 * weight.sum(), "small": weight.sum()}, {"big": 1.0, "small": 1.0}, [weight])
    assert balancing.warnings(0) == []


def test_a_term_that_a_schedule_switched_off_is_not_looked_at() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    watch = GradientWatch(balance=True)
    terms = {"on": weight.sum(), "off": 1000 * weight.sum()}
    watch.look(terms, {"on": 2.0, "off": 0.0}, [weight])
    assert watch.factors == {"on": 1.0}
    assert watch.shares == {"on": [1.0], "off": [0.0]}


def test_what_it_knows_survives_a_checkpoint() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    watch, other = GradientWatch(balance=True), GradientWatch(balance=True)
    for scale in (1.0, 5.0):
        watch.look({"a": scale * weight.sum(), "b": weight.sum()}, {"a": 1.0, "b": 1.0}, [weight])
    other.load_state_dict(watch.state_dict())
    assert vars(other) == vars(watch)
    assert other.norms["a"] == pytest.approx(3.0)  # the mean of both times


@pytest.mark.parametrize("balance", [False, True])
def test_in_a_training(data: TextDataModule, tmp_path: Path, balance: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the steps that are due, and then the step is made with the balanced weights."""
    monkeypatch.setattr("kd.gradients.EVERY", 3)
    student, teacher = model(2, 32), model(2, 32, seed=1)
    well_sized = {
        name: loss for name, loss in every_loss().items() if name in ("hard", "patient", "hidden", "embedding")
    }
    losses = set_up(well_sized, student, teacher, Classification(["negative", "positive"]))
    seen: list[dict[str, Any]] = []
    factors: dict[str, float] = {}  # of the first look

    class Watched(GradientWatch):
        def look(self, means: Any, weights: Any, parameters: Any) -> None:
            super().look(means, weights, parameters)
            own = {name: gradient_norm(weights[name] * self.factor(name) * mean, parameters)
                   for name, mean in means.items()}  # fmt: skip
            seen.append(own)
            if len(seen) == 1:
                factors.update(self.factors)

    signals = tuple(signal for loss in losses.values() for signal in loss.teacher_signals)
    watch = Watched(balance)
    fitted = fit(
        student, Classification(["negative", "positive"]), losses, FrozenTeacher(teacher, signals), data, settings(7),
        tmp_path, "key", "test", gradients=watch,
    )  # fmt: skip
    assert len(seen) == 3  # steps 0, 3 and 6 of 7
    assert all(len(shares) == 3 for shares in watch.shares.values())
    assert sum(shares[0] for shares in watch.shares.values()) == pytest.approx(1)
    first = seen[0]
    if balance:
        within = [name for name in losses if 1 / MOST < factors[name] < MOST and factors[name] != 1]
        assert len(within) >= 3
        each = [first[name] / losses[name].weight for name in within]
        assert each == pytest.approx([each[0]] * len(each), rel=1e-4)
        assert fitted.module.weight("hard") == pytest.approx(0.5 * watch.factors["hard"])
    else:
        for name in losses:
            assert first[name] / sum(first.values()) == pytest.approx(watch.shares[name][0], rel=1e-4)
        assert fitted.module.weight("hard") == 0.5
