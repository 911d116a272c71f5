"""What ONNX Runtime's own tools make of a float ONNX file; each rewrites the file in place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.calibrate import CalibrationDataReader
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from kd.export.source import Source
from kd.export.target import Target

INTEGER = ["MatMul", "Gemm", "Gather"]  # Gather: embeddings


class Rows(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: Iterator[dict[str, Any]]) -> None:
        self.batches = batches

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)


def int8_dynamic(path: Path, source: Source, target: Target) -> None:
    """int8 weights per channel; activations get their scale, one a tensor, when they are there."""
    quantize_dynamic(path, path, op_types_to_quantize=INTEGER, per_channel=True, weight_type=QuantType.QInt8)


def int8_static(path: Path, source: Source, target: Target) -> None:
    """int8 weights per channel and activations with the scales that training rows gave them."""
    assert target.calibration_rows is not None
    quantize_static(
        path, path, Rows(source.calibration(target.calibration_rows)), quant_format=QuantFormat.QDQ,
        op_types_to_quantize=INTEGER, per_channel=True, weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
        calibrate_method=CalibrationMethod.MinMax,
    )  # fmt: skip


def int4(path: Path, source: Source, target: Target) -> None:
    """Linear layers with int4 weights; embeddings stay float."""
    quantizer = MatMulNBitsQuantizer(onnx.load(path), block_size=target.group_size, is_symmetric=True, bits=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(path), use_external_data_format=False)


SCHEMES = {"int8_dynamic": int8_dynamic, "int8_static": int8_static, "int4": int4}
