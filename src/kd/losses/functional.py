"""The tensor maths of the losses: plain functions, each with its shapes, its reduction and its source.

B batch, L length, N units, C classes, K outcomes, H hidden width, P pairs of layers. All compute in float32 (float64
stays) whatever autocast says, because a hidden difference of 300 squared overflows float16.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

REDUCTIONS = ("sum", "mean")  # over classes, layers and width; over units it is always the mean


def full(tensor: Tensor) -> Tensor:
    """At least float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def directions(vectors: Tensor, least: Tensor | float = 0.0) -> Tensor:
    """Vectors ``[..., H]`` over their lengths; 0, without a gradient, where the squared length is ``least`` or less."""
    squares = vectors.pow(2).sum(-1, keepdim=True)
    none = squares <= least
    return (vectors / squares.masked_fill(none, 1.0).sqrt()).masked_fill(none, 0.0)


def deviations(values: Tensor) -> Tensor:
    """Values ``[..., K]`` less their mean, with length 1 over the last axis: Pearson's correlation of two is the inner
    product of these. 0, without a gradient, where they differ by rounding only.
    """
    rounding = 1e-12 * values.detach().pow(2).sum(-1, keepdim=True)
    return directions(values - values.mean(-1, keepdim=True), rounding)


def softened(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Logits ``[N, C]`` over a temperature, or over one for each row, ``[N]``."""
    return full(logits) / (temperature[:, None] if isinstance(temperature, Tensor) else temperature)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of distributions given by their logarithms, ``[..., K]`` to ``[...]``."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def patient_distance(student: Tensor, teacher: Tensor, normalize: bool = True) -> Tensor:
    """Squared distance of states ``[..., H]`` to ``[...]``, of their directions if ``normalize``.

    Sun et al. 2019, the L_PT equation: summed over H, not averaged (the published code averages over
    layers and H, which makes it weaker by their product).
    """
    student, teacher = full(student), full(teacher)
    if normalize:
        student, teacher = F.normalize(student, dim=-1, eps=1e-12), F.normalize(teacher, dim=-1, eps=1e-12)
    return (student - teacher).pow(2).sum(-1)


def masked_squared_error(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Sum over real tokens of the squared error averaged over H: ``[B, L, H]``, ``[B, L, H]``, ``[B, L]`` to a scalar.

    TinyBERT (Jiao et al. 2020) equations 8 and 9, with padding left out of the sum; divided by ``mask.sum()``
    it is the mean over tokens. Padded places are selected away, so that whatever stands there counts nothing.
    """
    error = (full(student) - full(teacher)).pow(2).mean(-1)
    return error.masked_fill(mask == 0, 0.0).sum()


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine over the last axis, ``[..., H]`` to ``[...]``: 0 to 2; 1 where a vector is 0."""
    return 1 - F.cosine_similarity(full(student), full(teacher), dim=-1)


def masked_cosine_distance(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Sum over real tokens of 1 - cosine: ``[B, L, H]``, ``[B, L, H]``, ``[B, L]`` to a scalar.

    Whatever stands at padded places is replaced before its square could overflow.
    """
    padded = mask == 0
    ours, theirs = (directions(full(states).masked_fill(padded[..., None], 0.0)) for states in (student, teacher))
    return (1 - (ours * theirs).sum(-1)).masked_fill(padded, 0.0).sum()


def mean_squared_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error averaged over the last axis, ``[..., H]`` to ``[...]``."""
    return (full(student) - full(teacher)).pow(2).mean(-1)
