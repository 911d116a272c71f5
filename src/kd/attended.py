"""Query, key and value of a layer, as each family makes them, caught by hooks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kd.architecture import family
from kd.models import encoder_layers


def watch_attention(model: Any, layer: int, kept: dict[str, Any]) -> list[RemovableHandle]:
    """Hooks on a layer, counted from 1, that put into ``kept`` what ``query_key_value`` makes its tensors of."""
    own, watched = family(model.config.model_type), encoder_layers(model)[layer - 1]

    def keep(name: str) -> RemovableHandle:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            kept[name] = output

        return watched.get_submodule(name).register_forward_hook(hook)

    def keep_angles(_module: nn.Module, _args: Any, named: dict[str, Any]) -> None:
        kept["angles"] = named["position_embeddings"]

    handles = [keep(name) for name in own.attended]
    if own.rotated:
        holder = watched.get_submodule(own.rotated)
        handles.append(holder.register_forward_pre_hook(keep_angles, with_kwargs=True))
    return handles


def query_key_value(config: Any, kept: dict[str, Any]) -> list[Tensor]:
    """Query, key and value of a layer as they enter the attention product, each ``[B, A, L, H / A]`` of A heads."""
    names = family(config.model_type).attended
    wide = [part for name in names for part in kept[name].chunk(3 // len(names), dim=-1)]
    query, key, value = (part.view(*part.shape[:-1], config.num_attention_heads, -1).transpose(1, 2) for part in wide)
    if "angles" in kept:
        query, key = (rotated(part, *kept["angles"]) for part in (query, key))
    return [query, key, value]


def rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021): number i of the first half and number i of the second are turned as a pair.

    States ``[B, A, L, d]``; ``cos`` and ``sin`` ``[B or 1, L, d]``, the same in both halves. In float32 on the way.
    """
    first, second = states.float().chunk(2, dim=-1)
    turned = states.float() * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]
    return turned.to(states.dtype)
