"""torchao's configs: of each scheme, and what it trains with. A config is made for a linear layer."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import nn

logging.getLogger("torchao").setLevel(logging.ERROR)  # it announces kernels that it can do without
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

NF4_BLOCK = 64  # weights that share a scale: QLoRA (Dettmers et al. 2023)


def int8_dynamic(_linear: nn.Linear | None = None) -> Any:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig
    from torchao.quantization.quant_primitives import MappingType

    return Int8DynamicActivationInt8WeightConfig(act_mapping_type=MappingType.ASYMMETRIC)


def int8_dynamic_trained(_linear: nn.Linear | None = None) -> Any:
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, PerAxis

    return Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=PerAxis(0))


def int8_weight_only(_linear: nn.Linear | None = None) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig()


def fp8_weight_only(_linear: nn.Linear | None = None) -> Any:
    from torchao.quantization import Float8WeightOnlyConfig

    return Float8WeightOnlyConfig()


def nf4(linear: nn.Linear) -> Any:
    """Scales are quantized too, as many together as divide the layer's, 256 at most."""
    from torchao.prototype._nf4tensor_api import NF4WeightOnlyConfig

    config = NF4WeightOnlyConfig()
    config.block_size, config.scaler_block_size = NF4_BLOCK, math.gcd(linear.weight.numel() // NF4_BLOCK, 256)
    return config


def int8_per_token() -> Any:
    """How int8 activations are fake-quantized: each token its own scale and zero point, as torchao's kernels do."""
    from torchao.quantization.qat import IntxFakeQuantizeConfig

    return IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)


def int8_weight_only_fake() -> tuple[Any, Any]:
    """Fake quantization of activations (none) and of weights, by row."""
    from torchao.quantization import PerAxis
    from torchao.quantization.qat import IntxFakeQuantizeConfig

    return None, IntxFakeQuantizeConfig(torch.int8, PerAxis(0))


def int8_dynamic_fake() -> tuple[Any, Any]:
    return int8_per_token(), int8_weight_only_fake()[1]
