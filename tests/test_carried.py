"""Quantized models in ONNX on their own grid: its numbers, integer operations, the same logits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import OWN, model
from test_quantization import inputs, settings
from test_static_linear import one_length
from torch import nn

from kd import quantization
from kd.errors import UserError
from kd.static_linear import StaticLinear

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from kd.export import carried  # noqa: E402


class Logits(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def exported(converted: Any, path: Path) -> Any:
    made = carried.exportable(converted)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    shapes = {0: batch, 1: length}
    example = torch.ones(2, 7, dtype=torch.long)
    with torch.no_grad():
        program = torch.onnx.export(
            Logits(made).eval(), (example, example.clone()), dynamo=True, opset_version=carried.opset(made, 20),
            dynamic_shapes={"input_ids": shapes, "attention_mask": shapes}, output_names=["logits"], verbose=False,
            input_names=["input_ids", "attention_mask"],
        )  # fmt: skip
    assert program is not None
    proto = program.model_proto
    del proto.graph.value_info[:]
    carried.pack(proto)
    onnx.save(proto, str(path))
    return proto


def converted(name: str, family: str = "bert", width: int = 64, **changes: Any) -> Any:
    how = settings(name, **changes)
    batches = one_length() if how.calibration_rows else None
    return quantization.convert(model(2, width, model_type=family), how, batches)[0]


def session(path: Path, optimized: Path | None = None) -> Any:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # else it rounds float inputs
    if optimized:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def answers(path: Path) -> torch.Tensor:
    return torch.from_numpy(session(path).run(None, {k: v.numpy() for k, v in inputs().items()})[0])


@pytest.mark.parametrize(("name", "changes"), [
    ("int8_static", {}), ("int8", {}), ("int8_qat", {"qat": False}), ("int8_weight_only", {}), ("int4", {}),
    ("int4", {"symmetric": False}), ("w4a8", {}),
])  # fmt: skip
@torch.no_grad()
def test_a_runtime_gives_the_logits_of_the_artefact(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    student = converted(name, **changes)
    expected = student(**inputs()).logits
    exported(student, tmp_path / "m.onnx")
    difference = (answers(tmp_path / "m.onnx") - expected).abs()
    exact = name in ("int8_weight_only", "int4")
    assert difference.max() < (1e-5 if exact else 2e-3)
    assert expected.std(0).min() > 1e-3


@pytest.mark.parametrize("family", list(OWN))
@torch.no_grad()
def test_families(family: str, tmp_path: Path) -> None:
    student = converted("int8_static", family)
    exported(student, tmp_path / "m.onnx")
    assert (answers(tmp_path / "m.onnx") - student(**inputs()).logits).abs().mean() < 2e-3


def test_the_grid_in_the_graph_is_the_artefacts_bit_for_bit(tmp_path: Path) -> None:
    student = converted("int8_static")
    graph = exported(student, tmp_path / "m.onnx").graph
    known = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    inputs_of = {node.output[0]: node for node in graph.node}
    found = []
    for node in graph.node:
        sides = [inputs_of[name] for name in node.input if name in inputs_of]
        if node.op_type == "MatMul" and [side.op_type for side in sides] == 2 * ["DequantizeLinear"]:
            found.append([known[name] for side in sides for name in side.input if name in known])
    layers = [module for module in student.modules() if isinstance(module, StaticLinear)]
    assert len(found) == len(layers) == 13
    for layer in layers:
        expected = [layer.input_scale, layer.input_zero_point, layer.weight.T, layer.scale]
        own = [one for one in found if np.array_equal(one[2], expected[2].numpy())]
        assert any(
            all(a.dtype == b.numpy().dtype and np.array_equal(a, b.numpy()) for a, b in zip(one, expected, strict=True))
            for one in own
        )


def test_onnx_runtime_multiplies_integers_and_the_file_is_small(tmp_path: Path) -> None:
    student = converted("int8_static")
    exported(student, tmp_path / "m.onnx")
    session(tmp_path / "m.onnx", tmp_path / "optimized.onnx")
    kinds = Counter(node.op_type for node in onnx.load(str(tmp_path / "optimized.onnx")).graph.node)
    assert kinds["MatMulIntegerToFloat"] == 13
    graph = onnx.load(str(tmp_path / "m.onnx")).graph
    floats = [tensor.dims for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    kept = sum(tensor.numel() for tensor in student.state_dict().values() if tensor.is_floating_point())
    assert sum(int(np.prod(dims)) for dims in floats) < kept + 64  # and a few constants: no weight stands there twice


def test_openvino_multiplies_integers(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    student = converted("int8_static")
    exported(student, tmp_path / "m.onnx")
    compiled = openvino.Core().compile_model(str(tmp_path / "m.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = [op.get_rt_info() for op in compiled.get_runtime_model().get_ops()]
    layers = [kind for kind in kinds if kind["layerType"].astype(str) == "FullyConnected"]
    integer = [kind for kind in layers if kind["runtimePrecision"].astype(str) in ("u8", "i8")]
    assert len(integer) == 13
    request = compiled({name: tensor.numpy() for name, tensor in inputs().items()})
    with torch.no_grad():
        assert (torch.from_numpy(request[0]) - student(**inputs()).logits).abs().mean() < 2e-3


def test_int4_takes_four_bits(tmp_path: Path) -> None:
    student = converted("int4")
    graph = exported(student, tmp_path / "m.onnx").graph
    packed = [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT4]
    assert len(packed) == 13
    assert all(2 * len(tensor.raw_data) == np.prod(tensor.dims) for tensor in packed)


@pytest.mark.parametrize("name", ["fp8", "nf4", "bf16"])
def test_what_no_runtime_has_the_grid_of_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="int8_static.*int4_weight_only"):
        carried.exportable(converted(name, width=128))
