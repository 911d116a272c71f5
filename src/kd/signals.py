"""Signals: names of tensors that losses ask a model for, and the Recorder that takes them in one forward pass.

``logits`` (see logits_at), ``embedding`` (the output of the embedding block), ``hidden/k`` ``[B, L, H]`` (transformers'
``hidden_states[k]``: 0 is the embedding output, layers count from 1) and ``cls/k`` ``[B, H]``, its first token.
What enters the first layer is 0, and what the base model gives out is the last: whatever a family does before or after.

``query/k``, ``key/k`` and ``value/k`` ``[B, A, L, H / A]`` of A heads as they enter the attention product (rotated,
where a family rotates), and ``attention/k`` ``[B, A, L, L]``: its float32 scores, query times key by the root of H / A,
before any mask and softmax. No attention backend gives these out, so they are rebuilt from query and key.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kd.attended import query_key_value, watch_attention
from kd.errors import UserError
from kd.losses.functional import scaled_products
from kd.models import encoder_layers
from kd.units import logits_at

PARTS = ("query", "key", "value")
KINDS = {"hidden": 0, "cls": 0, **dict.fromkeys(PARTS, 1), "attention": 1}  # the lowest layer of each


def layer_of(signal: str, layers: int) -> int | None:
    """The layer a signal is taken from; None for ``logits``. Raises UserError if there is no such signal."""
    if signal == "logits":
        return None
    if signal == "embedding":
        return 0
    kind, _, number = signal.partition("/")
    if kind not in KINDS or not number.isdigit() or not KINDS[kind] <= int(number) <= layers:
        raise UserError(
            f"Signal {signal!r}: known are logits, embedding, hidden/k and cls/k with k from 0 to {layers} here, and "
            "query/k, key/k, value/k and attention/k with k from 1."
        )
    return int(number)


def is_attention(signal: str) -> bool:
    """It is made of query, key and value, not of what a layer gives out."""
    return KINDS.get(signal.partition("/")[0]) == 1


class Recorder:
    """Runs a model and returns exactly the signals asked for, taken by forward hooks.

    Hooks work with every attention backend and keep no other layer's output alive.
    """

    def __init__(self, model: Any, signals: Iterable[str]) -> None:
        self.model = model
        self.signals = sorted(set(signals))
        count = model.config.num_hidden_layers
        self.layers = {signal: layer_of(signal, count) for signal in self.signals}

    def watch(self, layer: int, hidden: dict[int, Tensor]) -> RemovableHandle:
        """A hook that keeps ``hidden_states[layer]`` in ``hidden``."""

        def keep(state: Any) -> None:
            hidden[layer] = state if isinstance(state, Tensor) else state[0]

        layers = encoder_layers(self.model)
        if layer == 0:
            return layers[0].register_forward_pre_hook(lambda _module, inputs: keep(inputs))
        made_by: nn.Module = self.model.base_model if layer == len(layers) else layers[layer - 1]
        return made_by.register_forward_hook(lambda _module, _inputs, output: keep(output))

    def __call__(self, places: Tensor | None = None, **inputs: Tensor) -> dict[str, Tensor]:
        hidden: dict[int, Tensor] = {}
        attended: dict[int, dict[str, Any]] = {k: {} for s, k in self.layers.items() if k and is_attention(s)}
        of_states = {k for s, k in self.layers.items() if k is not None and not is_attention(s)}
        handles = [self.watch(layer, hidden) for layer in of_states]
        for layer, kept in attended.items():
            handles += watch_attention(self.model, layer, kept)
        try:
            logits = logits_at(self.model, places, **inputs)
        finally:
            for handle in handles:
                handle.remove()
        parts = {
            k: dict(zip(PARTS, query_key_value(self.model.config, kept), strict=True)) for k, kept in attended.items()
        }

        def tensor(signal: str, layer: int | None) -> Tensor:
            kind = signal.partition("/")[0]
            if layer is None:
                return logits
            if kind == "attention":
                return scaled_products(parts[layer]["query"], parts[layer]["key"])
            if kind in PARTS:
                return parts[layer][kind]
            return hidden[layer][:, 0] if kind == "cls" else hidden[layer]

        return {signal: tensor(signal, layer) for signal, layer in self.layers.items()}
