"""A narrower model of the same family: some of its coordinates, heads and neurons, with their weights.

The residual stream is sliced, not projected: a layer norm scales each coordinate by a weight of its own, so that a
rotation (SVD, PCA) could not pass it, and a slice of it is again a layer norm. Which coordinates stay is one choice for
the whole model; heads stay or go whole, so that what they attend to is theirs.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kd.architecture import as_transformers, family

SIZES = ("hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings")


@dataclass(frozen=True)
class Inside:
    """The linear layers of one transformer layer, by name. Fused ones have blocks of rows, one behind the other."""

    heads: tuple[str, ...]  # their rows are coordinates of heads; the values come last
    mixed: str  # reads these
    up: str  # its rows are neurons; fused: [inner, gate]
    down: str  # reads these


BERT = Inside(
    tuple(f"attention.self.{name}" for name in ("query", "key", "value")),
    "attention.output.dense", "intermediate.dense", "output.dense",
)  # fmt: skip
INSIDE = {
    "bert": BERT,
    "roberta": BERT,
    "electra": BERT,
    "distilbert": Inside(tuple(f"attention.{name}_lin" for name in "qkv"), "attention.out_lin", "ffn.lin1", "ffn.lin2"),
    "modernbert": Inside(("attn.Wqkv",), "attn.Wo", "mlp.Wi", "mlp.Wo"),
}


def size_of(config: Any, key: str) -> int:
    """A size by the name that conf/ has for it."""
    return int(getattr(config, family(config.model_type).fields.get(key, key)))


@torch.no_grad()
def narrowed(model: Any, sizes: dict[str, int]) -> Any:
    """A model of these sizes (keys of SIZES), none above the model's, with its weights sliced; heads as wide as its.

    A pooled state that is the model's output is mapped back to the coordinates it had.
    """
    config = copy.deepcopy(model.config)
    named = as_transformers({"model_type": config.model_type, **sizes})
    config.update({key: value for key, value in named.items() if key != "model_type"})
    made = type(model)(config).to(torch.float32)
    there, slices = model.state_dict(), Slices(model, made)
    done: set[int] = set()
    for name, tensor in made.state_dict().items():
        if tensor.data_ptr() in done:  # a decoder that is the embeddings, which come first
            continue
        done.add(tensor.data_ptr())
        if name in there:
            tensor.copy_(slices.of(name, there[name]))
        elif name == "output.weight":
            tensor.copy_(torch.eye(len(tensor))[:, slices.coordinates])
        else:
            assert name == "output.bias", name
            tensor.zero_()
    return made.eval()


class Slices:
    """Which coordinates, heads and neurons of ``model`` those of ``made`` are."""

    def __init__(self, model: Any, made: Any) -> None:
        config = model.config
        self.inside, self.layers = INSIDE[config.model_type], family(config.model_type).layers
        self.shapes = {name: tensor.shape for name, tensor in made.state_dict().items()}
        self.base, self.tensors = model.base_model_prefix, model.state_dict()
        self.width, self.neurons = size_of(config, "hidden_size"), size_of(config, "intermediate_size")
        self.per_head = self.width // size_of(config, "num_attention_heads")
        self.heads_kept, self.neurons_kept = (
            size_of(made.config, key) for key in ("num_attention_heads", "intermediate_size")
        )
        self.coordinates = strongest(self.energy(), size_of(made.config, "hidden_size"))

    def of(self, name: str, tensor: Tensor) -> Tensor:
        """The part of the tensor that the narrower model has.

        A linear layer that reads less has its weights scaled up to the norm that the same rows had.
        """
        rows = tensor
        for axis, kept in enumerate(self.shapes[name]):
            if tensor.shape[axis] != kept:
                rows, tensor = tensor, tensor.index_select(axis, self.places(name, axis, tensor.shape[axis]))
        if tensor.dim() == 2 and tensor.shape[1] < rows.shape[1] and ".embeddings." not in name:
            tensor = tensor * (rows.norm() / tensor.norm().clamp(min=1e-12))
        return tensor

    def places(self, name: str, axis: int, size: int) -> Tensor:
        """What is kept of an axis, in rising order; of a fused one, the same in each block."""
        layer, kind = self.kind(name, axis)
        if kind == "positions":
            return torch.arange(self.shapes[name][axis])
        if kind == "coordinates":
            return self.coordinates
        kept = self.head_coordinates(layer) if kind == "heads" else self.neurons_of(layer)
        block = self.width if kind == "heads" else self.neurons
        return torch.cat([kept + start for start in range(0, size, block)])

    def kind(self, name: str, axis: int) -> tuple[str, str]:
        """The layer a tensor belongs to, as a prefix of its name, and what its axis counts."""
        if name.endswith("position_embeddings.weight") and axis == 0:
            return "", "positions"
        found = re.fullmatch(rf"({re.escape(f'{self.base}.{self.layers}')}\.\d+\.)(.+)\.(?:weight|bias)", name)
        layer, linear = found.groups() if found else ("", "")
        if (linear in self.inside.heads and axis == 0) or (linear == self.inside.mixed and axis == 1):
            return layer, "heads"
        if (linear == self.inside.up and axis == 0) or (linear == self.inside.down and axis == 1):
            return layer, "neurons"
        return layer, "coordinates"

    def energy(self) -> Tensor:
        """``[H]``: the share of each coordinate in the squared weights that write or read it, tensors counted alike.

        Only tensors count that a narrower model has less of.
        """
        total = torch.zeros(self.width)
        for name, shape in self.shapes.items():
            tensor = self.tensors.get(name, torch.zeros(shape))
            for axis, kept in enumerate(shape):
                if tensor.shape[axis] != kept and self.kind(name, axis)[1] == "coordinates":
                    squares = tensor.square().movedim(axis, 0).reshape(self.width, -1).sum(1)
                    total += squares / squares.sum().clamp(min=1e-12)
        return total

    def head_coordinates(self, layer: str) -> Tensor:
        """The coordinates of the heads whose values, as the next layer reads them, are largest."""
        values = self.tensors[f"{layer}{self.inside.heads[-1]}.weight"][-self.width :]
        norms = values.square().sum(1) * self.tensors[f"{layer}{self.inside.mixed}.weight"].square().sum(0)
        kept = strongest(norms.view(-1, self.per_head).sum(1), self.heads_kept)
        return (kept[:, None] * self.per_head + torch.arange(self.per_head)).flatten()

    def neurons_of(self, layer: str) -> Tensor:
        """The neurons with the largest product of what they read and what is read of them."""
        up = self.tensors[f"{layer}{self.inside.up}.weight"].square().sum(1).view(-1, self.neurons).sum(0)
        down = self.tensors[f"{layer}{self.inside.down}.weight"].square().sum(0)
        return strongest(up * down, self.neurons_kept)


def strongest(strength: Tensor, count: int) -> Tensor:
    """The places of the largest, in rising order; of equal ones the first."""
    return strength.sort(descending=True, stable=True).indices[:count].sort().values
