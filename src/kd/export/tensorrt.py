"""What can be said about an ONNX file and TensorRT without a GPU: what its ONNX parser refuses, and how to build.

No engine is built and none is run here. An empty list of problems means that nothing known is in the way.

Source: the operator table of onnx-tensorrt (docs/operators.md) for TensorRT 10.15, "supports operators in the inclusive
range of opset 9 to opset 24", and its importer of QuantizeLinear and DequantizeLinear (onnxOpImporters.cpp), which
asserts that zero points are 0 and takes unsigned 8 bits on NVIDIA's DLA alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kd.errors import UserError

TENSORRT = "10.15"
OPSETS = range(9, 25)
OPERATORS = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization BlackmanWindow
    Cast CastLike Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DeformConv
    DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather
    GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample
    GroupNormalization GRU HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity If InstanceNormalization
    IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LRN LSTM LpNormalization LpPool MatMul
    Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or Pad Pow
    PRelu QuantizeLinear RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1
    ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu
    Reshape Resize ReverseSequence RMSNormalization RNN RoiAlign RotaryEmbedding Round STFT Scan Scatter
    ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth
    Split Sqrt Squeeze Sub Sum Tan Tanh TensorScatter ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where
    Xor
    """.split()
)
QUANTIZED = frozenset("INT8 INT4 FLOAT8E4M3FN FLOAT4E2M1".split())  # what it computes with, signed or floating
UNSIGNED = frozenset("UINT8 UINT4".split())
GRID = frozenset("QuantizeLinear DequantizeLinear".split())


def problems(path: str | Path) -> list[str]:
    """One sentence for each kind of thing in the file that TensorRT's ONNX parser refuses; empty if none is known.

    Raises UserError if the file cannot be read or onnx is not installed.
    """
    model = opened(Path(path))
    facts = Facts(model)
    found: dict[str, list[str]] = {}
    for reason, node in [*opset_problems(model), *facts.operators(), *facts.grids(), *facts.narrow(), *facts.axes()]:
        found.setdefault(reason, []).append(node)
    return [f"{reason}{places(names)}" for reason, names in found.items()]


def places(names: list[str]) -> str:
    named = [name for name in names if name]
    return f" ({len(named)} of them, the first is {named[0]})" if named else ""


def opened(path: Path) -> Any:
    try:
        import onnx
    except ImportError as error:
        raise UserError("Looking at an ONNX file needs onnx: pip install onnx") from error
    if not path.is_file():
        raise UserError(f"{path}: there is no such file. Give the model.onnx of an export.")
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return onnx.load(path)
    except DecodeError as error:
        raise UserError(f"{path} is no ONNX file, or it is cut short: {error}.") from error


def opset_problems(model: Any) -> Iterator[tuple[str, str]]:
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version not in OPSETS:
            yield f"Opset {entry.version}: TensorRT {TENSORRT} reads {OPSETS[0]} to {OPSETS[-1]}.", ""


def inside(nodes: Any) -> Iterator[Any]:
    """The nodes, and those of the graphs in their attributes (If, Loop)."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in [attribute.g, *attribute.graphs]:
                yield from inside(graph.node)


class Facts:
    """Nodes, types of tensors and constants of a model, by name."""

    def __init__(self, model: Any) -> None:
        import onnx
        from onnx import TensorProto, numpy_helper, shape_inference

        self.functions = {(function.domain, function.name) for function in model.functions}
        self.nodes = list(inside([*model.graph.node, *(node for f in model.functions for node in f.node)]))
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in self.nodes:
            for attribute in node.attribute if node.op_type == "Constant" else ():
                if attribute.type == onnx.AttributeProto.TENSOR:
                    self.constants[node.output[0]] = attribute.t
        graph = shape_inference.infer_shapes(model).graph
        typed = [*graph.input, *graph.output, *graph.value_info]
        numbers = {value.name: value.type.tensor_type.elem_type for value in typed}
        numbers |= {name: tensor.data_type for name, tensor in self.constants.items()}
        self.types: dict[str, str] = {name: TensorProto.DataType.Name(number) for name, number in numbers.items()}
        self.array = numpy_helper.to_array

    def operators(self) -> Iterator[tuple[str, str]]:
        for node in self.nodes:
            if (node.domain, node.op_type) in self.functions:
                continue
            if node.domain not in ("", "ai.onnx"):
                yield f"{node.domain}.{node.op_type} is no operator of ONNX itself.", called(node)
            elif node.op_type not in OPERATORS:
                yield f"{node.op_type} is not among the operators of TensorRT {TENSORRT}.", called(node)

    def grids(self) -> Iterator[tuple[str, str]]:
        """QuantizeLinear and DequantizeLinear: signed, and symmetric about 0."""
        for node in self.nodes:
            if node.op_type not in GRID:
                continue
            kind = self.integers(node)
            if kind in UNSIGNED:
                yield f"{node.op_type} in {kind}: on a GPU the quantized types are signed.", called(node)
            elif kind not in QUANTIZED:
                yield f"{node.op_type} in {kind}: TensorRT has INT8, INT4, FP8 and FP4 there.", called(node)
            zero = node.input[2] if len(node.input) > 2 else ""
            if zero and zero not in self.constants:
                yield f"{node.op_type} with a zero point that is no constant.", called(node)
            elif zero and self.array(self.constants[zero]).any():
                yield f"{node.op_type} with a zero point other than 0: quantize symmetrically.", called(node)

    def integers(self, node: Any) -> str:
        """The type on the quantized side of a node."""
        if node.op_type == "DequantizeLinear":
            return self.types.get(node.input[0], "an unknown type")
        if len(node.input) > 2 and node.input[2]:
            return self.types.get(node.input[2], "an unknown type")
        return self.types.get(node.output[0], "UINT8")  # ONNX's default

    def narrow(self) -> Iterator[tuple[str, str]]:
        """Quantized numbers may go into DequantizeLinear and nowhere else."""
        for node in self.nodes:
            for name in node.input if node.op_type not in GRID and node.op_type in OPERATORS else ():
                if self.types.get(name) in QUANTIZED | UNSIGNED:
                    yield (
                        f"{node.op_type} reads {self.types[name]}: TensorRT has it for wider types alone.",
                        called(node),
                    )

    def axes(self) -> Iterator[tuple[str, str]]:
        for node in self.nodes:
            if (
                node.op_type.startswith("Reduce")
                and len(node.input) > 1
                and node.input[1] not in self.constants | {"": 0}
            ):
                yield f"{node.op_type} with axes that are no constant.", called(node)


def called(node: Any) -> str:
    return str(node.name or node.output[0])


def command(path: str | Path, rows: tuple[int, int, int], tokens: tuple[int, int, int]) -> str:
    """The ``trtexec`` line that builds an engine: ``rows`` a batch and ``tokens`` a row, least, likely, most.

    One profile covers all inputs ``[B, L]`` of the file. They stay int64, as TensorRT binds them since version 9.
    """
    names = [value.name for value in opened(Path(path)).graph.input]
    shapes = [
        f"--{which}Shapes=" + ",".join(f"{name}:{batch}x{length}" for name in names)
        for which, batch, length in zip(("min", "opt", "max"), rows, tokens, strict=True)
    ]
    return " ".join(["trtexec", f"--onnx={path}", "--stronglyTyped", *shapes, "--saveEngine=model.plan"])
