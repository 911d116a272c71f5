"""Which layers of an int4 export get eight bits: those whose rounding to four moves the logits most for their size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from kd.export.source import Source
from kd.export.target import Target
from kd.grid import Grid, dequantize, quantize


def chosen(source: Source, target: Target, path: Path) -> set[str]:
    """The names of their MatMul nodes in the float model's ONNX file at ``path``; by calibration rows alone."""
    assert target.group_size is not None
    assert target.int8_share is not None
    if target.int8_share == 0:
        return set()
    model = source.artefact.model
    nodes = matrix_products(onnx.load(path), model)
    layers = {name: model.get_submodule(name) for name in nodes.values()}
    errors = {name: rounding_error(layer.weight, Grid(4, target.group_size)) for name, layer in layers.items()}
    moved = moves(model, source.calibration(target.calibration_rows), errors)
    found = worst(moved, {name: layer.weight.numel() for name, layer in layers.items()}, target.int8_share)
    return {node for node, name in nodes.items() if name in found}


def matrix_products(proto: Any, model: nn.Module) -> dict[str, str]:
    """By the name of a MatMul node the linear layer whose weights it has: their numbers are the same, turned over."""
    names = {content(m.weight.detach().T.numpy()): name for name, m in model.named_modules() if type(m) is nn.Linear}
    weights = {one.name: one for one in proto.graph.initializer if len(one.dims) == 2}
    found = {}
    for node in proto.graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            name = names.get(content(numpy_helper.to_array(weights[node.input[1]])))
            if name is not None:
                found[node.name] = name
    return found


def content(array: np.ndarray[Any, Any]) -> tuple[tuple[int, ...], bytes]:
    return array.shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()


def rounding_error(weight: Tensor, grid: Grid) -> Tensor:
    return dequantize(*quantize(weight.detach(), grid)) - weight.detach()


@torch.enable_grad()
def moves(model: Any, batches: Iterable[Mapping[str, Any]], errors: Mapping[str, Tensor]) -> dict[str, float]:
    """By layer, the mean over rows of the squared distance that its weights' ``errors`` ``[O, I]`` move the logits.

    To first order that is, for a row with inputs ``x_t`` and gradients ``g_t`` of a logit, ``sum_t g_t . E x_t``. One
    backward pass stands for all logits, with random signs on them: the expected square is the sum of their squares.
    """
    squares, rows = dict.fromkeys(errors, 0.0), 0
    signs = torch.Generator().manual_seed(0)
    for batch in batches:
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        handles = [model.get_submodule(name).register_forward_hook(tap(seen, name)) for name in errors]
        try:
            logits = model(**{name: torch.as_tensor(ids) for name, ids in batch.items()}).logits
        finally:
            for handle in handles:
                handle.remove()
        total = (logits * (2 * torch.randint(0, 2, logits.shape, generator=signs) - 1)).sum()
        gradients = torch.autograd.grad(total, [added for _, added in seen.values()], allow_unused=True)
        for (name, (read, _)), gradient in zip(seen.items(), gradients, strict=True):
            if gradient is not None:  # of the last layer, nothing but the first token may count
                moved = (gradient * (read @ errors[name].T)).flatten(1).sum(1)
                squares[name] += float(moved.square().sum())
        rows += len(logits)
    return {name: square / rows for name, square in squares.items()}


def tap(seen: dict[str, tuple[Tensor, Tensor]], name: str) -> Any:
    """A hook that keeps what a layer read, and adds to what it gave a zero, whose gradient is that of the output."""

    def hook(_module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        added = torch.zeros_like(output, requires_grad=True)
        seen[name] = given[0].detach(), added
        return output + added

    return hook


def worst(moved: Mapping[str, float], sizes: Mapping[str, int], share: float) -> set[str]:
    """Those with the largest squared movement for a weight, while together they are at most that share of all weights.

    One that is too large for what is left of the share is passed over.
    """
    room, found = share * sum(sizes.values()), set()
    for name in sorted(moved, key=lambda name: moved[name] / sizes[name], reverse=True):
        if sizes[name] <= room:
            room -= sizes[name]
            found.add(name)
    return found
