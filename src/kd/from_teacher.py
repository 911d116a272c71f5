"""A student made of the teacher: some of its layers, as another family, narrower, with fewer positions."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from kd.architecture import family
from kd.as_distilbert import as_distilbert
from kd.layer_map import kept_layers
from kd.models import encoder_layers, kept_fields
from kd.narrow import SIZES, narrowed, size_of


def student_from_teacher(teacher: Any, keep: Any, architecture: dict[str, Any]) -> tuple[Any, list[str]]:
    """A student of this architecture with the teacher's weights, and what was done, in short phrases.

    The architecture is one that ``contradictions.teacher_contradictions`` lets through; sizes that it does not name are
    the teacher's.
    """
    kept = kept_layers(keep, architecture["num_hidden_layers"], teacher.config.num_hidden_layers)
    student = student_of_layers(teacher, kept, None)
    own = "layer 1 is its" if len(kept) == 1 else f"layers 1 to {len(kept)} are its"
    told = [f"{own} {', '.join(map(str, kept))} of {teacher.config.num_hidden_layers}"]
    if architecture["model_type"] != student.config.model_type:
        student, more = as_distilbert(student)
        told += more
    wanted = {key: architecture[key] for key in SIZES if key in architecture}
    there = {key: size_of(student.config, key) for key in wanted}
    if wanted != there:
        student = narrowed(student, wanted)
        changed = [f"{key} {there[key]} -> {wanted[key]}" for key in wanted if wanted[key] != there[key]]
        told.append(f"sliced: {', '.join(changed)}")
    told.append("all else copied, the head too" if len(told) == 1 else "the rest copied")
    return student, told


def student_of_layers(teacher: Any, keep: Any, num_layers: int | None) -> Any:
    """A copy of the teacher that keeps only some of its layers (counted from 1), and everything else."""
    kept = kept_layers(keep, num_layers, teacher.config.num_hidden_layers)
    student = copy.deepcopy(teacher)
    layers, own = encoder_layers(student), family(student.config.model_type)
    holder, _, name = own.layers.rpartition(".")
    setattr(student.base_model.get_submodule(holder), name, nn.ModuleList(layers[i - 1] for i in kept))
    student.config.num_hidden_layers = len(kept)
    for field, entries in kept_fields(teacher.config, own, kept).items():
        setattr(student.config, field, entries)
    if own.bare_first and kept[0] > 1:
        bare(layers[kept[0] - 1], *own.bare_first)
    return student.requires_grad_(True).eval()


@torch.no_grad()
def bare(layer: nn.Module, norm_name: str, linear_name: str) -> None:
    """Takes away a layer norm that the family's first layer has not, since what it reads is normed already.

    Centring and weight of the norm go into the linear layer behind it (and a bias, where both have one): what is lost
    is the division by the spread of each token's state, which is 1 behind embeddings whose norm has weight 1.
    """
    norm, linear = layer.get_submodule(norm_name), layer.get_submodule(linear_name)
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(linear, nn.Linear)
    if norm.bias is not None and linear.bias is not None:
        linear.bias.add_(linear.weight @ norm.bias)
    linear.weight *= norm.weight
    linear.weight -= linear.weight.mean(1, keepdim=True)
    setattr(layer, norm_name, nn.Identity())
