"""A model as runtimes are to get it: quantized layers on their own grid, attention in operations that they fuse.

``exportable`` makes the module that is exported, ``pack`` finishes the ONNX file. OpenVINO reads the same file.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kd.errors import UserError
from kd.export.carried_layers import CarriedEmbedding, CarriedInt4, CarriedInt8, CarriedPerToken, CarriedStatic
from kd.export.target import CARRIED_SCHEMES
from kd.quantized_embedding import QuantizedEmbedding
from kd.static_linear import StaticLinear
from kd.torchao_linears import replace

INT4 = "int4_"  # initializers of this name hold int4 numbers, a byte each until ``pack``
CAN = ", ".join(CARRIED_SCHEMES)


def exportable(model: Any) -> Any:
    """A copy of a float or converted model for ``torch.onnx.export`` with ``opset``; its logits are the same.

    It is not to be called: its layers are ONNX operations. Raises UserError for layers no runtime has the grid of.
    """
    model = copy.deepcopy(model).eval()
    for name, module in list(model.named_modules()):
        made = carried(name, module)
        if made is not None:
            replace(model, name, made.eval())
    model.config._attn_implementation = "eager"  # matmul, add, softmax, matmul: runtimes fuse these
    if model.config.model_type != "modernbert":  # its layers have masks of two kinds
        model.base_model.register_forward_pre_hook(add_mask, with_kwargs=True)
    return model


def opset(model: Any, wanted: int) -> int:
    """The version of ONNX's operations that a model of ``exportable`` needs: int4 came with 21."""
    int4 = any(isinstance(module, CarriedInt4) for module in model.modules())
    return max(wanted, 21) if int4 else wanted


def add_mask(_model: nn.Module, given: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Makes ``[B, L]`` of 0 and 1 the ``[B, 1, 1, L]`` that attention adds; transformers makes ``[B, 1, L, L]``."""
    mask: Tensor = named["attention_mask"]
    added = (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
    return given, named | {"attention_mask": added}


def carried(name: str, module: Any) -> nn.Module | None:
    """What stands for a quantized layer in the exported model; None for other modules."""
    if isinstance(module, StaticLinear):
        return CarriedStatic(module)
    if isinstance(module, QuantizedEmbedding):
        return CarriedEmbedding(module)
    if not isinstance(module, nn.Linear) or type(module.weight) in (Tensor, nn.Parameter):
        if any(p.dtype == torch.bfloat16 for p in module.parameters(recurse=False)):
            raise UserError(f"A bf16 model has no grid to carry: export the float student. Carried are {CAN}.")
        return None
    return carried_torchao(name, module)


def carried_torchao(name: str, module: Any) -> nn.Module:
    from torchao.quantization import IntxUnpackedToInt8Tensor
    from torchao.quantization.quantize_.workflows.int8.int8_tensor import Int8Tensor

    weight = module.weight
    if not isinstance(weight, Int8Tensor | IntxUnpackedToInt8Tensor):
        raise UserError(
            f"{name} is quantized to {type(weight).__name__}, which ONNX Runtime and OpenVINO cannot compute with. "
            f"Carried on their own grid are {CAN}; export the float student to have a runtime quantize it."
        )
    per_token = (
        weight.act_quant_kwargs if isinstance(weight, Int8Tensor) else weight.activation_quantization
    ) is not None
    integers, scale, zero, bias = weight.qdata, weight.scale.float(), weight.zero_point, module.bias
    if getattr(weight, "target_dtype", torch.int8) == torch.int4:  # type: ignore[attr-defined]
        return CarriedInt4(integers, scale, zero if zero.any() else None, bias, per_token)
    assert scale.shape[1] == 1, f"{name}: a scale a row"
    assert not zero.any(), f"{name}: int8 weights are symmetric"
    return (CarriedPerToken if per_token else CarriedInt8)(integers, scale[:, 0], bias)


def pack(proto: Any) -> None:
    """Makes int4 initializers of an exported ModelProto four bits a number, the first in the low half of a byte."""
    import onnx

    for tensor in proto.graph.initializer:
        if tensor.name.rpartition(".")[2].startswith(INT4):
            integers = np.frombuffer(tensor.raw_data, np.int8)
            nibbles = np.pad(integers, (0, len(integers) % 2)).view(np.uint8) & 15
            tensor.raw_data = (nibbles[0::2] | nibbles[1::2] << 4).tobytes()
            tensor.data_type = onnx.TensorProto.INT4
