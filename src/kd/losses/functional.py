"""The tensor maths of the losses: plain functions, each with its shapes, its reduction and its source.

B batch, L length, C classes, H hidden width, P pairs of layers. All compute in float32 (float64 stays) whatever
autocast says, because a hidden difference of 300 squared overflows float16.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def full(tensor: Tensor) -> Tensor:
    """At least float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def product(left: Tensor, right: Tensor) -> Tensor:
    """The matrix product of at least float32, which autocast would round to bfloat16."""
    with torch.autocast(left.device.type, enabled=False):
        return full(left) @ full(right)


def directions(vectors: Tensor, least: Tensor | float = 0.0) -> Tensor:
    """Vectors ``[..., H]`` over their lengths; 0, without a gradient, where the squared length is ``least`` or less."""
    squares = vectors.pow(2).sum(-1, keepdim=True)
    none = squares <= least
    return (vectors / squares.masked_fill(none, 1.0).sqrt()).masked_fill(none, 0.0)


def softened_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² KL(softmax(teacher/T) || softmax(student/T)) over the last axis (Hinton et al. 2015, section 2).

    Logits ``[..., C]`` to ``[...]``: summed over classes, nothing else reduced. T² keeps the gradient's size
    when T changes.
    """
    log_q = F.log_softmax(full(student) / temperature, dim=-1)
    log_p = F.log_softmax(full(teacher) / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def binary_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² KL of Bernoulli distributions, one for each logit: ``[...]`` to ``[...]``, nothing reduced.

    ``p = sigmoid(teacher/T)`` against ``q = sigmoid(student/T)``: the soft loss of several labels and of thresholds. It
    is binary cross-entropy less the teacher's own entropy, so that it is 0 where they agree.
    """
    z, target = full(student) / temperature, full(teacher) / temperature
    p = target.sigmoid()
    # log p/q = logsigmoid(target) - logsigmoid(z), and the same of the complements: finite for any logits
    passed = p * (F.logsigmoid(target) - F.logsigmoid(z))
    failed = (1 - p) * (F.logsigmoid(-target) - F.logsigmoid(-z))
    return temperature**2 * (passed + failed)


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


def mean_squared_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error averaged over the last axis, ``[..., H]`` to ``[...]``."""
    return (full(student) - full(teacher)).pow(2).mean(-1)
