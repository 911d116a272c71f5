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


def scaled_products(left: Tensor, right: Tensor) -> Tensor:
    """left right^T / sqrt(d): ``[..., L, d]`` twice to ``[..., L, L]``, in float32 under autocast too."""
    with torch.autocast(left.device.type, enabled=False):
        products = full(left) @ full(right).transpose(-1, -2)
    return products / float(left.shape[-1] ** 0.5)


def relations(states: Tensor, heads: int, mask: Tensor) -> Tensor:
    """How the tokens relate in one projection: ``[B, A, L, d]`` to scores ``[B, heads, L, L]``, before any softmax.

    Wang et al. 2021 (MiniLMv2), section 3.1: the A heads are put side by side and cut anew into ``heads`` relation
    heads, whose products are divided by the root of their own width. ``mask`` is ``[B, L]``; padded tokens are set to
    0 before the products, where they could overflow.
    """
    side_by_side = states.transpose(1, 2).flatten(2).masked_fill(mask[..., None] == 0, 0.0)
    split = side_by_side.view(*mask.shape, heads, -1).transpose(1, 2)
    return scaled_products(split, split)


def attention_kl(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) over the real keys: scores ``[B, A, L, L]`` to ``[B, L]`` of queries.

    Wang et al. 2020 (MiniLM) equation 1: summed over keys, averaged over the A heads; 0 for padded queries, whose
    distribution means nothing. ``mask`` is ``[B, L]``.
    """
    away = real_pairs(mask).logical_not()
    # finite: with -inf on both sides the divergence is NaN. Float32, so far below any score
    log_q = F.log_softmax(full(student).masked_fill(away, -1e9), dim=-1)
    log_p = F.log_softmax(full(teacher).masked_fill(away, -1e9), dim=-1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).mean(1)


def attention_squared_error(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Squared error of attention scores ``[B, A, L, L]`` to ``[B, L]`` of queries; 0 for padded queries.

    Jiao et al. 2020 (TinyBERT) equation 7: averaged over the row's real keys and over the A heads. ``mask`` is
    ``[B, L]``; the pairs that are not of two real tokens are selected away first, so that nothing there overflows.
    """
    away = real_pairs(mask).logical_not()
    error = (full(student).masked_fill(away, 0.0) - full(teacher).masked_fill(away, 0.0)).pow(2)
    return error.sum(-1).mean(1) / mask.sum(-1, keepdim=True).clamp(min=1)


def real_pairs(mask: Tensor) -> Tensor:
    """Where query and key are both real: ``[B, L]`` to ``[B, 1, L, L]``."""
    real = mask != 0
    return real[:, None, :, None] & real[:, None, None, :]
