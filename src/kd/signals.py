"""Signals: names of tensors that losses ask a model for, and the Recorder that takes them in one forward pass.

``logits`` (see logits_at), ``embedding`` (the output of the embedding block), ``hidden/k`` ``[B, L, H]`` (transformers'
``hidden_states[k]``: 0 is the embedding output, layers count from 1) and ``cls/k`` ``[B, H]``, its first token.
What enters the first layer is 0, and what the base model gives out is the last: whatever a family does before or after.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kd.errors import UserError
from kd.models import encoder_layers
from kd.units import logits_at

KINDS = ("hidden", "cls")


def layer_of(signal: str, layers: int) -> int | None:
    """The layer a signal is taken from; None for ``logits``. Raises UserError if there is no such signal."""
    if signal == "logits":
        return None
    if signal == "embedding":
        return 0
    kind, _, number = signal.partition("/")
    if kind not in KINDS or not number.isdigit() or int(number) > layers:
        raise UserError(
            f"Signal {signal!r}: known are logits, embedding, hidden/k and cls/k, with k from 0 to {layers} here."
        )
    return int(number)


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
        handles = [self.watch(layer, hidden) for layer in {k for k in self.layers.values() if k is not None}]
        try:
            logits = logits_at(self.model, places, **inputs)
        finally:
            for handle in handles:
                handle.remove()
        return {
            signal: logits if layer is None else hidden[layer][:, 0] if signal.startswith("cls") else hidden[layer]
            for signal, layer in self.layers.items()
        }
