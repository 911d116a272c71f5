"""How much of the gradient each loss term gives, and weights that make it the share one asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

EVERY = 100  # optimizer steps; each time costs one more backward pass for each term
FEW, NEARLY_ALL = 0.01, 0.99
VANISHING = 1e-3  # of the largest norm: there is nothing to balance yet in a term that is at its least already
MOST = 100.0  # that a weight is multiplied or divided by
SCALE = 1024.0  # of what is differentiated: in float16 small gradients would be 0


class GradientWatch:
    """Norms of the terms' gradients with respect to the student, at the first step and every EVERY-th.

    ``balance``: the weights then are shares. Where the gradient of term i with weight ``w_i`` has the norm ``G_i``, the
    weight becomes ``w_i * (sum_j w_j G_j / sum_j w_j) / G_i``: every term gives ``w_i / sum_j w_j`` of the sum of
    norms, which stays what it was. Norms are averaged with those of the time before. (This is not GradNorm of Chen et
    al. 2018, which learns weights from how fast each loss falls.) With accumulation, one of the step's batches is seen.

    It looks again, too, when a schedule has switched a term on or off.
    """

    def __init__(self, balance: bool = False) -> None:
        self.balance = balance
        self.norms: dict[str, float] = {}  # unweighted
        self.factors: dict[str, float] = {}  # of the weights
        self.shares: dict[str, list[float]] = {}  # of each time, with the weights as configured; 0 while switched off
        self.active: list[str] = []  # the terms that had a weight at the last look
        self.warned: set[str] = set()

    def due(self, step: int, first_batch: bool, weights: Mapping[str, float]) -> bool:
        """Before an optimizer step, at the first of its batches."""
        return first_batch and (step % EVERY == 0 or self.active != active_of(weights))

    def look(
        self, means: Mapping[str, Tensor], weights: Mapping[str, float], parameters: Sequence[nn.Parameter]
    ) -> None:
        """``means`` are this batch's parts of the terms' global means, scalars with a graph. Waits for the device.

        A norm that is no finite number is not counted: the watch over the losses stops such a training.
        """
        self.active = active_of(weights)
        for name in means:
            norm = gradient_norm(means[name], parameters)
            if math.isfinite(norm):
                self.norms[name] = (self.norms[name] + norm) / 2 if name in self.norms and self.balance else norm
        known = {name: weights[name] for name in self.active if name in self.norms}
        if self.balance:
            self.factors = balanced(self.norms, known)
        sizes = {name: weight * self.norms[name] for name, weight in known.items()}
        for name in means:
            self.shares.setdefault(name, []).append(sizes.get(name, 0.0) / max(sum(sizes.values()), 1e-30))

    def factor(self, name: str) -> float:
        return self.factors.get(name, 1.0)

    def warnings(self, step: int) -> list[str]:
        """Of terms that give hardly any of the gradient, or all of it; each is said once, unless it is balanced."""
        found: list[str] = []
        if self.balance or len(self.active) < 2:
            return found
        for name in self.active:
            shares = self.shares[name]
            if FEW <= shares[-1] <= NEARLY_ALL or name in self.warned:
                continue
            self.warned.add(name)
            which = "it hardly matters" if shares[-1] < FEW else "the others hardly matter"
            found.append(
                f"The term {name!r} gives {shares[-1]:.2%} of the gradient at step {step}: {which}. Change "
                f"method.{name}.weight, or add method.balance=gradnorm, which makes the weights shares of the gradient."
            )
        return found

    def described(self) -> dict[str, str]:
        """Lines of the report."""
        means = ", ".join(f"{name} {sum(shares) / len(shares):.1%}" for name, shares in self.shares.items())
        if not self.balance:
            return {"shares of the gradient": means}
        factors = ", ".join(f"{name} {factor:.3g}" for name, factor in self.factors.items())
        return {"shares of the gradient before balancing": means, "weights multiplied, at the end": factors}

    def state_dict(self) -> dict[str, Any]:
        return {
            "norms": self.norms, "factors": self.factors, "shares": self.shares, "active": self.active,
            "warned": sorted(self.warned),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.norms, self.factors, self.shares = (dict(state[name]) for name in ("norms", "factors", "shares"))
        self.active, self.warned = list(state["active"]), {*state["warned"]}


def active_of(weights: Mapping[str, float]) -> list[str]:
    """The terms that have a weight now."""
    return [name for name, weight in weights.items() if weight > 0]


def gradient_norm(mean: Tensor, parameters: Sequence[nn.Parameter]) -> float:
    """Of the gradient over all ranks: each rank's part is divided by the global count already."""
    gradients = torch.autograd.grad(SCALE * mean, parameters, retain_graph=True, allow_unused=True)
    flat = torch.cat([gradient.to_dense().flatten() for gradient in gradients if gradient is not None])
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(flat)
    return float(flat.norm()) / SCALE


def balanced(norms: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """What each weight is to be multiplied with, of the terms that have one now: MOST at most, 1 for VANISHING ones."""
    least = VANISHING * max((norms[name] for name in weights), default=0.0)
    counted = {name: weight for name, weight in weights.items() if norms[name] > least}
    whole = sum(weight * norms[name] for name, weight in counted.items()) / max(sum(counted.values()), 1e-30)
    return {
        name: min(max(whole / norms[name], 1 / MOST), MOST) if name in counted else 1.0 for name in weights
    }  # fmt: skip
