"""``compile=auto|on|off``: torch.compile for the layers of the student while it trains.

Each layer's ``forward`` is compiled, not the module: hooks on a layer, which record its states, stay outside and cause
no compilation of their own, and names in checkpoints stay as they are. Numbers of rows and tokens are symbols, so
that all batches share one compilation. Whatever does not train runs as it is: scores do not depend on the setting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from kd.lit_module import DistillationModule
from kd.machine import compiler
from kd.models import encoder_layers
from kd.signals import is_attention

WORTH_IT = 2000  # steps on a GPU; a compilation takes a minute or two
SLOWER = "on a CPU a step gains nothing by it, and compiling takes minutes (docs/speed-precision.md)"


def decide(wanted: str, device: torch.device, steps: int) -> tuple[bool, str]:
    """Whether to compile, and why, for people."""
    if wanted != "auto":
        return wanted == "on", f"as compile={wanted} says"
    if device.type != "cuda":
        return False, SLOWER if device.type == "cpu" else f"not tried on {device.type}"
    if compiler() is None:
        return False, "there is no C++ compiler"
    if steps < WORTH_IT:
        return False, f"{steps} steps are too few to win back a minute or two of compiling"
    return True, f"{steps} steps win back the minute or two of compiling (not tried by the authors on a GPU)"


class CompiledLayers(Callback):
    """Compiles for the time of a training.

    Layers whose query, key and value are recorded stay as they are: those hooks are inside of them.
    """

    def __init__(self) -> None:
        self.layers: list[Any] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        torch._dynamo.config.skip_nnmodule_hook_guards = True  # no layer has a hook inside that it had not before
        if pl_module.gradients is not None:  # which goes backward several times
            torch._functorch.config.donated_buffer = False
        watched = {layer for signal, layer in pl_module.recorder.layers.items() if is_attention(signal)}
        for number, layer in enumerate(encoder_layers(pl_module.student), start=1):
            if number not in watched:
                layer.forward = compiled(layer)
                self.layers.append(layer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.undo()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.undo()

    def undo(self) -> None:
        """Copies of the student are made from now on, and what was compiled is bound to the layers that it is of."""
        while self.layers:
            del self.layers.pop().forward


def compiled(layer: Any) -> Callable[..., Any]:
    """The layer's forward: compiled while it trains, as it is otherwise."""
    plain = layer.forward
    fast = torch.compile(plain, dynamic=True)

    def forward(*inputs: Any, **named: Any) -> Any:
        return (fast if layer.training and torch.is_grad_enabled() else plain)(*inputs, **named)

    return forward
