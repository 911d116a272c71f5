"""What TensorRT refuses in an ONNX file, on graphs of a few nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kd.errors import UserError
from kd.export.tensorrt import OPERATORS, command, problems

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def saved(path: Path, nodes: list[Any], constants: dict[str, Any] | None = None, opset: int = 18, **more: Any) -> Path:
    """A file with the input ``x`` and the output ``y``, float32 ``[batch, 4]``."""
    shape: list[Any] = ["batch", 4]
    graph = helper.make_graph(
        nodes, "graph", [helper.make_tensor_value_info("x", more.pop("kind", FLOAT), shape)],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, **more), path)
    return path


def quantized(path: Path, zero: Any) -> Path:
    """x, quantized with that zero point and back."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="first"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], name="second"),
    ]
    return saved(path, nodes, {"scale": np.float32(0.1), "zero": zero})


def test_signed_symmetric_quantization_is_fine(tmp_path: Path) -> None:
    assert problems(quantized(tmp_path / "m.onnx", np.int8(0))) == []


def test_a_zero_point_is_named_with_its_node(tmp_path: Path) -> None:
    found = problems(quantized(tmp_path / "m.onnx", np.int8(3)))
    assert len(found) == 2
    assert found[0].startswith("QuantizeLinear with a zero point other than 0")
    assert "1 of them, the first is first" in found[0]


@pytest.mark.parametrize("zero", [np.uint8(0), np.uint8(128)])
def test_unsigned_activations_are_refused_whatever_their_zero_point(tmp_path: Path, zero: Any) -> None:
    found = " ".join(problems(quantized(tmp_path / "m.onnx", zero)))
    assert "QuantizeLinear in UINT8" in found
    assert "DequantizeLinear in UINT8" in found
    assert ("other than 0" in found) == bool(zero)


def test_without_a_zero_point_onnx_means_unsigned(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["y"]),
    ]
    found = problems(saved(tmp_path / "m.onnx", nodes, {"scale": np.float32(0.1)}))
    assert [text.split(":")[0] for text in found] == ["QuantizeLinear in UINT8", "DequantizeLinear in UINT8"]


def test_an_int32_bias_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["bias", "scale"], ["b"]),
        helper.make_node("Add", ["x", "b"], ["y"]),
    ]
    found = problems(saved(tmp_path / "m.onnx", nodes, {"bias": np.ones(4, np.int32), "scale": np.float32(0.1)}))
    assert found[0].startswith("DequantizeLinear in INT32")


def test_a_lookup_in_quantized_rows_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["rows", "x"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    constants = {"rows": np.ones((8, 4), np.int8), "scale": np.float32(0.1), "zero": np.int8(0)}
    found = problems(saved(tmp_path / "m.onnx", nodes, constants, kind=INT64))
    assert found == ["Gather reads INT8: TensorRT has it for wider types alone. (1 of them, the first is q)"]


def test_operators_of_one_runtime_and_dynamic_quantization_are_refused(tmp_path: Path) -> None:
    assert "DynamicQuantizeLinear" not in OPERATORS
    nodes = [
        helper.make_node("FastGelu", ["x"], ["g"], domain="com.microsoft"),
        helper.make_node("DynamicQuantizeLinear", ["g"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    found = " ".join(problems(saved(tmp_path / "m.onnx", nodes)))
    assert "com.microsoft.FastGelu is no operator of ONNX itself" in found
    assert "DynamicQuantizeLinear is not among the operators" in found
    assert "zero point that is no constant" in found


def test_nodes_inside_an_if_are_looked_at(tmp_path: Path) -> None:
    out = [helper.make_tensor_value_info("o", FLOAT, None)]
    branch = helper.make_graph([helper.make_node("Det", ["x"], ["o"])], "branch", [], out)
    node = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    assert problems(saved(tmp_path / "m.onnx", [node], {"yes": np.bool_(True)}))[0].startswith("Det is not among")


@pytest.mark.parametrize(("opset", "fine"), [(18, True), (24, True), (25, False)])
def test_opsets(tmp_path: Path, opset: int, fine: bool) -> None:
    path = saved(tmp_path / "m.onnx", [helper.make_node("Tanh", ["x"], ["y"])], opset=opset)
    assert (problems(path) == []) == fine


def test_axes_of_a_reduction_must_be_constant(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["axes"], start=1),
        helper.make_node("ReduceMax", ["x", "axes"], ["y"]),
    ]
    assert problems(saved(tmp_path / "m.onnx", nodes))[0].startswith("ReduceMax with axes that are no constant")


def test_the_command_has_a_profile_for_every_input(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", [helper.make_node("Tanh", ["x"], ["y"])])
    line = command(path, (1, 8, 64), (2, 64, 128))
    assert f"trtexec --onnx={path} --stronglyTyped" in line
    for shape in ("--minShapes=x:1x2", "--optShapes=x:8x64", "--maxShapes=x:64x128"):
        assert shape in line


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        problems(tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match="no ONNX file"):
        problems(tmp_path / "m.onnx")
