"""Encoder layers as BERT and DistilBERT have them, trained in bf16 on a CPU by one function each.

There the products of a small batch take a third of a step; casts, copies and calls of many small operations take the
rest. Here a layer is one node of the autograd graph: query, key and value are one product, weights are cast once, masks
of dropouts are drawn as bits. The arithmetic is that of autocast with transformers' eager attention: products and
scores in bfloat16, sums of states and layer norms in float32.

Of the last layer mostly nothing but the first token's state is read, [CLS]: by a classifier, and by losses on it. Then
that layer computes keys and values of all tokens, and all else of the first one alone. The numbers are the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.activations import GELUActivation

from kd.fast_dropout import kept
from kd.heads import pooling_of
from kd.models import encoder_layers

BF16 = torch.bfloat16
SHORT = 32  # tokens
NORM_GRADIENTS = [True, True, True]  # of states, weight and bias
ops = torch.ops.aten
# what torch.compile asks before it calls the operator; some builds have neither, and other chips refuse bfloat16 there
ADDS_BIAS_WITHIN = (
    hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")
    and torch.ops.mkldnn._is_mkldnn_bf16_supported()
)


@dataclass(frozen=True)
class Layout:
    """Where a layer keeps its parts. A dropout that a family does not have is None."""

    linears: tuple[str, ...]  # query, key, value, behind the heads, up, down
    norms: tuple[str, str]
    dropouts: tuple[str | None, ...]  # of probabilities, behind the heads, behind down
    activation: str


BERT = Layout(
    ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
     "intermediate.dense", "output.dense"),
    ("attention.output.LayerNorm", "output.LayerNorm"),
    ("attention.self.dropout", "attention.output.dropout", "output.dropout"),
    "intermediate.intermediate_act_fn",
)  # fmt: skip
LAYOUTS = {
    "bert": BERT,
    "roberta": BERT,
    "electra": BERT,
    "distilbert": Layout(
        ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2"),
        ("sa_layer_norm", "output_layer_norm"),
        ("attention.dropout", None, "ffn.dropout"),
        "ffn.activation",
    ),
}


class Parts:
    """Of one layer: six linear layers, two norms, three dropouts; and bfloat16 copies of what the products need.

    ``first_alone``: nothing behind the layer reads another state than the first token's.
    """

    first_alone = False

    def __init__(self, linears: list[Any], norms: list[Any], dropouts: Sequence[float], heads: int) -> None:
        self.linears, self.norms, self.dropouts, self.heads = linears, norms, dropouts, heads
        weights, biases = [m.weight for m in linears], [m.bias for m in linears]
        self.parameters = [*weights, *biases, *(p for m in norms for p in (m.weight, m.bias))]
        self.weights, self.biases = four_of(weights), four_of(biases)
        self.places = [*six_of(self.weights), *six_of(self.biases)]

    @property
    def watched(self) -> bool:
        """Something wants to see what goes through a part, which nobody calls."""
        return any(m._forward_hooks or m._forward_pre_hooks for m in (*self.linears, *self.norms))

    def cast(self) -> None:
        """Into the same memory each time. A backward pass reads it, too: no step changes weights before that."""
        for place, parameter in zip(self.places, self.parameters, strict=False):
            place.copy_(parameter)


def four_of(six: Sequence[Tensor]) -> list[Tensor]:
    """Room in bfloat16: query's, key's and value's in one, one after another, and the others'."""
    first = six[0].new_empty((3 * six[0].shape[0], *six[0].shape[1:]), dtype=BF16)
    return [first, *(torch.empty_like(each, dtype=BF16) for each in six[3:])]


def six_of(four: Sequence[Tensor]) -> list[Tensor]:
    return [*four[0].chunk(3), *four[1:]]


class Step(torch.autograd.Function):
    """States ``[B, L, H]``, float32, through a layer; ``mask`` as transformers makes it for SDPA or eager attention.

    What comes out is ``[B, 1, H]`` where the first token's state alone is read.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor | None, parts: Parts, *parameters: Tensor) -> Tensor:
        (rows, length, wide), heads = x.shape, parts.heads
        asking = 1 if parts.first_alone else length  # tokens of a row that go on
        g1, c1, g2, c2 = parameters[12:]
        parts.cast()
        (w_in, w_out, w_up, w_down), (b_in, b_out, b_up, b_down) = parts.weights, parts.biases
        mask0, mask1, mask2 = masks(
            ((rows * heads, asking, length), (rows * asking, wide), (rows * asking, wide)), parts.dropouts
        )
        x16 = x.reshape(-1, wide).to(BF16)
        if parts.first_alone:
            [query] = of_heads(linear(firsts(x16, rows), w_in[:wide], b_in[:wide]), rows, heads, 1)
            key, value = of_heads(linear(x16, w_in[wide:], b_in[wide:]), rows, heads, 2)
            mask = mask if mask is None else mask[..., :1, :]
        else:
            query, key, value = of_heads(linear(x16, w_in, b_in), rows, heads, 3)
        chances = probabilities(query, key, mask, heads)
        context = (
            torch.bmm(dropped(chances, mask0), value).view(rows, heads, asking, -1).transpose(1, 2).reshape(-1, wide)
        )
        sum1 = x[:, :asking].reshape(-1, wide) + through(linear(context, w_out, b_out), mask1)
        middle, mean1, scale1 = torch.native_layer_norm(sum1, (wide,), g1, c1, parts.norms[0].eps)
        middle16 = middle.to(BF16)
        up = linear(middle16, w_up, b_up)
        active = F.gelu(up)
        sum2 = middle.add_(through(linear(active, w_down, b_down), mask2))
        found, mean2, scale2 = torch.native_layer_norm(sum2, (wide,), g2, c2, parts.norms[1].eps)
        ctx.save_for_backward(
            x16, query, key, value, chances, mask0, context, mask1, sum1, mean1, scale1, g1, c1, middle16, up,
            active, mask2, sum2, mean2, scale2, g2, c2,
        )  # fmt: skip
        ctx.parts = parts
        return found.view(rows, asking, wide)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (
            x16, query, key, value, chances, mask0, context, mask1, sum1, mean1, scale1, g1, c1, middle16, up,
            active, mask2, sum2, mean2, scale2, g2, c2,
        ) = ctx.saved_tensors  # fmt: skip
        (rows, asking, wide), heads = gradients[0].shape, ctx.parts.heads
        w_in, w_out, w_up, w_down = ctx.parts.weights
        g, *norm2 = ops.native_layer_norm_backward(
            gradients[0].reshape(-1, wide), sum2, (wide,), mean2, scale2, g2, c2, NORM_GRADIENTS
        )
        down = through(g.to(BF16), mask2)
        of_down = of_linear(down, active)
        up = ops.gelu_backward(down @ w_down, up)
        of_up = of_linear(up, middle16)
        g, *norm1 = ops.native_layer_norm_backward(
            g.add_(up @ w_up), sum1, (wide,), mean1, scale1, g1, c1, NORM_GRADIENTS
        )
        out = through(g.to(BF16), mask1)
        of_out = of_linear(out, context)
        seen = (out @ w_out).view(rows, asking, heads, -1).transpose(1, 2).reshape(query.shape)
        chance = through(torch.bmm(seen, value.transpose(1, 2)), mask0)
        score = softmax_backward(chance, chances).mul_(query.shape[-1] ** -0.5)
        if ctx.parts.first_alone:
            keys = key.new_empty(2, *key.shape)
            torch.bmm(score.transpose(1, 2), query, out=keys[0])
            torch.bmm(dropped(chances, mask0).transpose(1, 2), seen, out=keys[1])
            asked, read = to_rows(torch.bmm(score, key)[None], rows), to_rows(keys, rows)
            parts_in = [of_linear(asked, firsts(x16, rows)), of_linear(read, x16)]
            weights_in, biases_in = (torch.cat(both) for both in zip(*parts_in, strict=True))
            into = (read @ w_in[wide:]).float().view(rows, -1, wide)
            into[:, 0] += g.add_(asked @ w_in[:wide])
        else:
            three = key.new_empty(3, *key.shape)
            torch.bmm(score, key, out=three[0])
            torch.bmm(score.transpose(1, 2), query, out=three[1])
            torch.bmm(dropped(chances, mask0).transpose(1, 2), seen, out=three[2])
            all_of = to_rows(three, rows)
            weights_in, biases_in = of_linear(all_of, x16)
            into = g.add_(all_of @ w_in).view(rows, -1, wide)
        weights, biases = zip((weights_in, biases_in), of_out, of_up, of_down, strict=True)
        return into, None, None, *six_of(weights), *six_of(biases), *norm1, *norm2


def firsts(states: Tensor, rows: int) -> Tensor:
    """The first token's of every row, of ``[B L, H]``."""
    return states.view(rows, -1, states.shape[-1])[:, 0].contiguous()


def of_heads(states: Tensor, rows: int, heads: int, count: int) -> Tensor:
    """``[B L, count H]`` as ``[count, B A, L, H / A]``, each of A heads together."""
    length = len(states) // rows
    split = states.view(rows, length, count, heads, -1).permute(2, 0, 3, 1, 4)
    return split.reshape(count, rows * heads, length, -1)


def to_rows(parts: Tensor, rows: int) -> Tensor:
    """The reverse of ``of_heads``."""
    count, of_rows, length, size = parts.shape
    split = parts.view(count, rows, of_rows // rows, length, size).permute(1, 3, 0, 2, 4)
    return split.reshape(rows * length, -1)


def masks(shapes: Sequence[tuple[int, ...]], dropouts: Sequence[float]) -> list[Tensor | None]:
    """Of dropouts, one for each shape; drawn at once where they are all as likely."""
    if len(set(dropouts)) > 1:
        return [kept(shape, p, BF16) for shape, p in zip(shapes, dropouts, strict=True)]
    sizes = [math.prod(shape) for shape in shapes]
    whole = kept((sum(sizes),), dropouts[0], BF16)
    if whole is None:
        return [None for _ in shapes]
    return [part.view(shape) for part, shape in zip(torch.split(whole, sizes), shapes, strict=True)]


def probabilities(query: Tensor, key: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """Softmax of the scores, ``[B A, L, L]``."""
    scores = torch.bmm(query, key.transpose(1, 2)).mul_(query.shape[-1] ** -0.5)
    if mask is not None:
        of_heads = scores.view(-1, heads, *scores.shape[1:])
        if mask.dtype == torch.bool:
            of_heads.masked_fill_(~mask, torch.finfo(BF16).min)
        else:
            of_heads.add_(mask.clamp(min=torch.finfo(BF16).min))
    return softmax(scores)


def linear(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Of ``[N, in]``. torch.addmm writes the bias to every row first, which takes a fifth of the time."""
    if ADDS_BIAS_WITHIN:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
        return found
    return torch.addmm(bias, states, weight.t())


def softmax(scores: Tensor) -> Tensor:
    """Over the last dimension. Where that is short, torch's own computes mostly on empty lanes."""
    if scores.shape[-1] > SHORT:
        return torch.softmax(scores, dim=-1)
    found = scores.float()
    found.sub_(found.amax(-1, keepdim=True)).exp_()
    return found.div_(found.sum(-1, keepdim=True)).to(BF16)


def softmax_backward(gradient: Tensor, chances: Tensor) -> Tensor:
    if chances.shape[-1] > SHORT:
        whole: Tensor = ops._softmax_backward_data(gradient, chances, -1, BF16)
        return whole
    exact = chances.float()
    found = gradient * exact
    return found.addcmul_(exact, found.sum(-1, keepdim=True), value=-1).to(BF16)


def dropped(states: Tensor, mask: Tensor | None) -> Tensor:
    return states if mask is None else states * mask


def through(states: Tensor, mask: Tensor | None) -> Tensor:
    """In place."""
    return states if mask is None else states.mul_(mask)


def of_linear(gradient: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients, float32, of weight and bias of a linear layer that had ``states`` as its input."""
    return (gradient.t() @ states).float(), gradient.sum(0).float()


class FusedLayer:
    """Before a layer's own class: while it trains under autocast to bfloat16 on a CPU, Step; otherwise as it was."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, *more: Any, **named: Any) -> Any:
        parts: Parts = self.__dict__["parts"]
        asked = any(value is not None and value is not False for value in (*more, *named.values()))
        if not self.training or asked or parts.watched or not in_bf16(hidden_states):  # type: ignore[attr-defined]
            return super().forward(hidden_states, attention_mask, *more, **named)  # type: ignore[misc]
        with torch.autocast("cpu", enabled=False):
            return Step.apply(hidden_states.float(), attention_mask, parts, *parts.parameters)  # type: ignore[no-untyped-call]


def in_bf16(states: Tensor) -> bool:
    on_cpu = states.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return on_cpu and torch.get_autocast_dtype("cpu") == BF16


def parts_of(layer: nn.Module, config: Any) -> Parts | None:
    """None for a layer that Step does not compute: of another family, with another activation, quantized."""
    layout = LAYOUTS.get(config.model_type)
    if layout is None or getattr(config, "is_decoder", False) or getattr(config, "chunk_size_feed_forward", 0):
        return None
    linears, norms = ([layer.get_submodule(name) for name in names] for names in (layout.linears, layout.norms))
    dropouts = [0.0 if name is None else float(layer.get_submodule(name).p) for name in layout.dropouts]  # type: ignore[arg-type]
    plain = all(type(m) is nn.Linear for m in linears) and all(type(m) is nn.LayerNorm for m in norms)
    gelu = isinstance(layer.get_submodule(layout.activation), GELUActivation)
    known = plain and gelu and max(dropouts) < 0.999  # nearer to 1, no number of LEVELS says it
    return Parts(linears, norms, dropouts, config.num_attention_heads) if known else None


def reads_first_alone(student: Any, asked: Mapping[str, int | None]) -> bool:
    """Whether the head of a ``student`` of LAYOUTS, and who asks for signals, read [CLS] alone of the last states.

    ``asked`` has the layer of each signal, as a Recorder's. Other signals of the last layer are read within it, and
    keep it from being fused at all.
    """
    how, last = pooling_of(student.config), student.config.num_hidden_layers
    of_cls = how == "cls" or (how is None and type(student).__name__.endswith("ForSequenceClassification"))
    return of_cls and all(layer != last or signal.startswith("cls/") for signal, layer in asked.items())


def fuse(student: Any, first_alone: bool = False) -> list[Any]:
    """The layers of ``student`` that are fused from now on: those that Step computes.

    ``first_alone``: what reads_first_alone says.
    """
    found, layers = [], encoder_layers(student)
    for layer in layers:
        parts = parts_of(layer, student.config)
        if parts is not None:
            parts.first_alone = first_alone and layer is layers[-1]
            own = type(layer)
            layer.__dict__["parts"] = parts
            layer.__class__ = type(f"Fused{own.__name__}", (FusedLayer, own), {})
            found.append(layer)
    return found


class TrainsFusedLayers(Callback):
    """The student's layers are fused while it trains; what is made of it afterwards knows nothing of it."""

    first_alone = False  # the last layer goes on with the first token alone

    def __init__(self) -> None:
        self.layers: list[Any] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.precision == "bf16-mixed" and pl_module.device.type == "cpu":
            alone = reads_first_alone(pl_module.student, pl_module.recorder.layers)  # type: ignore[union-attr,arg-type]
            self.layers = fuse(pl_module.student, alone)
            self.first_alone = any(layer.__dict__["parts"].first_alone for layer in self.layers)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        while self.layers:
            layer = self.layers.pop()
            layer.__class__ = type(layer).__bases__[1]
            del layer.__dict__["parts"]

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)
