"""OpenVINO's own files (.xml with .bin), by its converter; int8 and int4 by NNCF."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kd.export import onnx
from kd.export.eight_bits import chosen
from kd.export.source import Source
from kd.export.target import Target

ALPHAS = (0.95, 0.7)  # the first is NNCF's own
OPSET = 18  # int4 takes a newer one by itself
FILES = ["model.xml", "model.bin"]


def write(source: Source, target: Target, directory: Path) -> list[str]:
    """Writes the model's files. Returns the names of the files that the runtime reads."""
    import openvino

    logging.getLogger("nncf").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stdout(io.StringIO()):  # progress bars of NNCF
        path = Path(place) / onnx.FILE
        onnx.write_float(source, OPSET, path)
        model = SCHEMES[target.scheme](converted(source, path), path, source, target)
    openvino.save_model(model, directory / FILES[0], compress_to_fp16=False)  # float32 weights are float32
    return FILES


def converted(source: Source, path: Path) -> Any:
    """The ONNX file, whose attention the runtime fuses; of any batch size and length."""
    import openvino

    model = openvino.convert_model(path)
    if source.quantized:  # or layers with float inputs would round them to int8, which their model does not
        model.set_rt_info("0", ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
    return model


def float32(model: Any, path: Path, source: Source, target: Target) -> Any:
    return model


def int8_static(model: Any, path: Path, source: Source, target: Target) -> Any:
    """int8 weights and activations, with the scales that training rows gave them.

    Biases are corrected layer by layer: slower than NNCF's default, with some 40 % fewer answers changed. How much of
    an outlying channel's size goes into the weights (SmoothQuant's alpha) suits one student and not another: of ALPHAS
    the one is taken whose logits are nearest to the float model's on the calibration rows.
    """
    import nncf

    rows = list(source.calibration(target.calibration_rows))
    with torch.no_grad():
        wanted = [source.module(**{k: torch.as_tensor(ids) for k, ids in batch.items()}).numpy() for batch in rows]
    found = {}
    for alpha in ALPHAS:
        made = nncf.quantize(
            model.clone(), nncf.Dataset(rows), subset_size=len(rows), model_type=nncf.ModelType.TRANSFORMER,
            fast_bias_correction=False, advanced_parameters=nncf.AdvancedQuantizationParameters(
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=alpha)
            ),
        )  # fmt: skip
        found[distance(made, rows, wanted)] = made
    return found[min(found)]


def distance(model: Any, rows: Sequence[Any], wanted: Sequence[Any]) -> float:
    """The mean absolute difference of a model's logits on ``rows`` from those that are wanted."""
    import openvino

    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    errors = [np.abs(compiled(batch)[0] - logits).ravel() for batch, logits in zip(rows, wanted, strict=True)]
    return float(np.concatenate(errors).mean())


def int4(model: Any, path: Path, source: Source, target: Target) -> Any:
    """int4 weights by GPTQ; the worst layers, embeddings and the head in int8."""
    import nncf

    eight = chosen(source, target, path)
    rows = list(source.calibration(target.calibration_rows))
    model = nncf.compress_weights(
        model, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=target.group_size, ratio=1.0, gptq=True,
        dataset=nncf.Dataset(rows), subset_size=len(rows), ignored_scope=nncf.IgnoredScope(names=sorted(eight)),
    )  # fmt: skip
    return nncf.compress_weights(model)  # what is float still, in int8


SCHEMES = {"float32": float32, "int8_static": int8_static, "int4": int4}
