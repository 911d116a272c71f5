"""ONNX files: the float model as torch exports it, and what ONNX Runtime's tools make of it."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch

from kd.export.carried import exportable, opset, pack
from kd.export.source import Logits, Source
from kd.export.target import Target

FILE = "model.onnx"
BESIDE = "model.onnx.data"
LARGEST = 2**31 - 2**24  # bytes of weights in one protobuf message, with room for the graph


def write(source: Source, target: Target, directory: Path) -> list[str]:
    """Writes the model's file. Returns the names of the files that the runtime reads."""
    path = directory / FILE
    assert target.opset is not None
    write_float(source, target.opset, path)
    if target.scheme != "float32":
        from kd.export import onnx_bias, onnx_quantized

        onnx_quantized.SCHEMES[target.scheme](path, source, target)
        onnx_bias.correct(path, source, target.calibration_rows)
    return written(path)


def write_float(source: Source, oldest: int, path: Path) -> None:
    """A forward pass of any batch size and length, by torch.export; a quantized model's on its own grid."""
    inputs, module = source.inputs, Logits(exportable(source.artefact.model)).eval()
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    example = {name: torch.ones(2, 7, dtype=torch.long) for name in inputs}
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            module, (), kwargs=example, input_names=list(inputs), output_names=["logits"],
            opset_version=opset(module, oldest), dynamo=True, verbose=False,
            dynamic_shapes={name: {0: batch, 1: length} for name in inputs},
        )  # fmt: skip
        assert program is not None
        proto = program.model_proto
    pack(proto)
    del proto.graph.value_info[:]  # shapes that it inferred contradict each other where heads are reshaped
    save(proto, path)


def save(proto: Any, path: Path) -> None:
    """In one file, or with the weights beside it where one would be too large for its format."""
    path.with_name(BESIDE).unlink(missing_ok=True)  # onnx would write after what is there
    size = sum(len(one.raw_data) for one in proto.graph.initializer)
    onnx.save(proto, str(path), save_as_external_data=size > LARGEST, location=BESIDE)


def written(path: Path) -> list[str]:
    """The names of the model's file and, where it reads one, of that beside it."""
    weights = onnx.load(path, load_external_data=False).graph.initializer
    if any(one.data_location == onnx.TensorProto.EXTERNAL for one in weights):
        return [FILE, BESIDE]
    path.with_name(BESIDE).unlink(missing_ok=True)  # of the float model, and this one is small enough
    return [FILE]


class quiet(warnings.catch_warnings):
    """Exporters tell of everything they try."""

    def __enter__(self) -> Any:
        found = super().__enter__()
        warnings.simplefilter("ignore")
        self.loggers = {name: logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")}
        self.levels = {name: logger.level for name, logger in self.loggers.items()}
        for logger in self.loggers.values():
            logger.setLevel(logging.ERROR)
        return found

    def __exit__(self, *error: Any) -> None:
        for name, logger in self.loggers.items():
            logger.setLevel(self.levels[name])
        super().__exit__(*error)
