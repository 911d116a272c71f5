"""int8 and int4 ONNX files from a float one, which is rewritten in place. Embeddings become int8 in all of them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.calibrate import CalibrationDataReader

from kd.export import gptq
from kd.export.eight_bits import chosen
from kd.export.onnx_layers import Graph, int8_embeddings, smooth
from kd.export.source import Source
from kd.export.target import Target

LINEAR = ["MatMul", "Gemm"]
INT8 = 4  # MatMulNBits' accuracy level: what it reads becomes int8, block by block
CONTRIBUTED = "com.microsoft"


class Rows(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: Iterator[dict[str, Any]]) -> None:
        self.batches = batches

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """ONNX Runtime's tools tell the root logger of every tensor."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def int8_dynamic(path: Path, source: Source, target: Target) -> None:
    """int8 weights per channel; what layers read gets its scale, one a tensor, when it is there."""
    smooth(path, source.calibration(target.calibration_rows))
    int8_embeddings(path)
    with quiet():
        quantize_dynamic(path, path, op_types_to_quantize=LINEAR, per_channel=True, weight_type=QuantType.QInt8)


def int8_static(path: Path, source: Source, target: Target) -> None:
    """int8 weights per channel; what layers read is uint8 by the range that it had on training rows, what they give
    stays float.
    """
    smooth(path, source.calibration(target.calibration_rows))
    int8_embeddings(path)
    with quiet():
        quantize_static(
            path, path, Rows(source.calibration(target.calibration_rows)), quant_format=QuantFormat.QDQ,
            op_types_to_quantize=LINEAR, per_channel=True, weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8, calibrate_method=CalibrationMethod.MinMax,
            extra_options={"OpTypesToExcludeOutputQuantization": LINEAR},
        )  # fmt: skip


def int4(path: Path, source: Source, target: Target) -> None:
    """Linear layers in groups with int4 weights by GPTQ (MatMulNBits), the worst of them with int8 ones; the head stays
    float.
    """
    assert target.group_size is not None
    graph = Graph(path)
    eight = chosen(source, target, path)
    hessians: dict[str, Any] = {}
    for read in graph.read(source.calibration(target.calibration_rows)):
        for name, values in read.items():
            hessians[name] = hessians.get(name, 0) + values.T.astype(np.float64) @ values
    for name, nodes in list(graph.linear.items()):
        for node in nodes:
            bits = 8 if node.name in eight else 4
            weight = graph.value(node.input[1]).T
            packed(graph, node, *gptq.quantized(weight, hessians[name], target.group_size, bits), bits)
    if CONTRIBUTED not in {one.domain for one in graph.proto.opset_import}:
        graph.proto.opset_import.append(helper.make_opsetid(CONTRIBUTED, 1))
    graph.save(path)
    int8_embeddings(path)


def packed(graph: Graph, node: onnx.NodeProto, codes: Any, scales: Any, bits: int) -> None:
    """A MatMulNBits node instead of a MatMul; codes ``[out, in]``, of 4 bits two a byte, the first in the low half."""
    (out, width), blocks = codes.shape, scales.shape[1]
    halves = codes.reshape(out, blocks, width // blocks)
    name = node.input[1]
    weight = graph.add(f"{name}.codes", halves if bits == 8 else halves[:, :, 0::2] | (halves[:, :, 1::2] << 4))
    scale = graph.add(f"{name}.scales", scales)
    made = helper.make_node(
        "MatMulNBits", [node.input[0], weight, scale], list(node.output), f"{node.name}.int{bits}", domain=CONTRIBUTED,
        K=width, N=out, bits=bits, block_size=width // blocks, accuracy_level=INT8,
    )  # fmt: skip
    graph.instead(node, made)
    graph.drop(name)


SCHEMES = {"int8_dynamic": int8_dynamic, "int8_static": int8_static, "int4": int4}
