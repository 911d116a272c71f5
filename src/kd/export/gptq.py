"""Integer weights that make up for each other's rounding (GPTQ: Frantar et al. 2023, https://arxiv.org/abs/2210.17323)."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
SHARES = np.linspace(0.8, 1.1, 13)  # of the widest scale, to choose from
DAMPING = 0.01  # of the mean of the Hessian's diagonal, as in the paper


def zero(bits: int) -> int:
    """The code of 0: 8 of the 0 to 15 of four bits."""
    return int(2 ** (bits - 1))


def group_scales(weight: Array, bits: int) -> Array:
    """Of rows ``[out, group]`` the scale with the least squared error, ``[out]``, among some around the one that puts
    the largest weight on the outermost code, of four bits -8.
    """
    largest = np.take_along_axis(weight, np.abs(weight).argmax(1)[:, None], 1)[:, 0]
    widest = np.where(largest == 0, 1e-8, largest / -zero(bits))
    scales = widest * SHARES[:, None]
    errors = np.square(rounded(weight / scales[..., None], bits) * scales[..., None] - weight).sum(-1)
    found: Array = np.take_along_axis(scales, errors.argmin(0)[None], 0)[0]
    return found


def rounded(weight: Array, bits: int) -> Array:
    found: Array = np.clip(np.rint(weight), -zero(bits), zero(bits) - 1)
    return found


def quantized(weight: Array, hessian: Array, group: int, bits: int) -> tuple[Array, Array]:
    """Codes from 0 on ``[out, in]`` and scales ``[out, in / group]`` of a matrix ``[out, in]``; a weight is about
    ``(code - zero(bits)) * scale``.

    ``hessian`` is ``X^T X`` of what the layer reads, ``[in, in]``. Columns are rounded one by one; what that changes in
    the output is taken back by the columns that follow (equations 2 and 3, with the Cholesky factor of algorithm 1).
    """
    weight, hessian = weight.astype(np.float64), hessian.astype(np.float64)
    width = weight.shape[1]
    dead = np.diag(hessian) == 0  # a channel that was always 0 has no say
    hessian[dead, dead] = 1.0
    hessian[np.diag_indices(width)] += DAMPING * np.diag(hessian).mean()
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    codes, scales = np.empty(weight.shape, np.uint8), np.empty((len(weight), width // group))
    for start in range(0, width, group):
        end = start + group
        scale = group_scales(weight[:, start:end], bits)
        scales[:, start // group] = scale
        errors = np.empty((len(weight), group))
        for i in range(start, end):
            codes[:, i] = rounded(weight[:, i] / scale, bits) + zero(bits)
            error = (weight[:, i] - (codes[:, i].astype(np.float64) - zero(bits)) * scale) / upper[i, i]
            weight[:, i:end] -= error[:, None] * upper[i, i:end]
            errors[:, i - start] = error
        weight[:, end:] -= errors @ upper[start:end, end:]
    return codes, scales.astype(np.float32)
