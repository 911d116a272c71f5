"""Each term's share of the gradient, and weights that follow from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import model
from test_lit_module import every_loss, set_up, settings

from kd.datamodule import TextDataModule
from kd.fit import fit
from kd.gradients import GradientWatch, balanced, gradient_norm
from kd.lit_module import FrozenTeacher
from kd.tasks import Classification


def test_the_norm_of_a_terms_gradient() -> None:
    one, two, idle = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    mean = 3 * one[0] + 4 * two[1]
    assert gradient_norm(mean, [one, two, idle]) == pytest.approx(5)
    assert one.grad is None
    torch.autograd.backward(mean)  # the graph is still there


def test_balanced_weights_are_shares_of_an_unchanged_sum() -> None:
    norms, weights = {"a": 10.0, "b": 0.1, "off": 3.0}, {"a": 1.0, "b": 3.0}
    factors = balanced(norms, weights)
    sizes = {name: weights[name] * factors[name] * norms[name] for name in weights}
    assert sizes["b"] / (sizes["a"] + sizes["b"]) == pytest.approx(0.75)
    assert sum(sizes.values()) == pytest.approx(1.0 * 10 + 3.0 * 0.1)
    assert "off" not in factors


def test_a_term_without_gradient_is_not_blown_up_without_bound() -> None:
    assert balanced({"a": 1.0, "b": 0.0}, {"a": 1.0, "b": 1.0})["b"] == pytest.approx(0.5 / 1e-6)
    assert balanced({"a": 0.0, "b": 0.0}, {"a": 1.0, "b": 1.0}) == {"a": 1.0, "b": 1.0}


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
    assert watch.shares == {"on": [1.0]}


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
    losses = set_up(every_loss(), student, teacher, Classification(["negative", "positive"]))
    seen: list[dict[str, Any]] = []

    class Watched(GradientWatch):
        def look(self, means: Any, weights: Any, parameters: Any) -> None:
            super().look(means, weights, parameters)
            own = {name: gradient_norm(weights[name] * self.factor(name) * mean, parameters)
                   for name, mean in means.items()}  # fmt: skip
            seen.append(own)

    signals = tuple(signal for loss in losses.values() for signal in loss.teacher_signals)
    watch = Watched(balance)
    fitted = fit(
        student, Classification(["negative", "positive"]), losses, FrozenTeacher(teacher, signals), data, settings(7),
        tmp_path, "key", "test", gradients=watch,
    )  # fmt: skip
    assert len(seen) == 3  # steps 0, 3 and 6 of 7
    assert all(len(shares) == 3 for shares in watch.shares.values())
    assert sum(shares[0] for shares in watch.shares.values()) == pytest.approx(1)
    first, whole = seen[0], sum(loss.weight for loss in losses.values())
    if balance:
        for name, loss in losses.items():
            assert first[name] / sum(first.values()) == pytest.approx(loss.weight / whole, rel=1e-4)
        assert fitted.module.weight("soft") == pytest.approx(0.5 * watch.factors["soft"])
    else:
        for name in losses:
            assert first[name] / sum(first.values()) == pytest.approx(watch.shares[name][0], rel=1e-4)
        assert fitted.module.weight("soft") == 0.5
