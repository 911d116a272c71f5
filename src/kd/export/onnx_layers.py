"""Linear layers and embeddings of an ONNX file, what the layers read on some rows, and other weights for them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from kd.export.onnx import save

Array = np.ndarray[Any, Any]
LARGEST_INT8 = 127
FEW = 16  # rows of an embedding that stays float


class Graph:
    """A graph with its float matrices at hand; ``linear`` has the MatMul nodes of a constant matrix by what they read.

    Gemm, as the head is, is none of them.
    """

    def __init__(self, path: Path) -> None:
        self.proto = onnx.load(path)
        self.nodes = self.proto.graph.node
        self.tensors = {one.name: one for one in self.proto.graph.initializer}
        self.linear: dict[str, list[Any]] = defaultdict(list)
        for node in self.nodes:
            if node.op_type == "MatMul" and self.is_matrix(node.input[1]):
                self.linear[node.input[0]].append(node)

    def is_matrix(self, name: str) -> bool:
        found = self.tensors.get(name)
        return found is not None and len(found.dims) == 2 and found.data_type == onnx.TensorProto.FLOAT

    def value(self, name: str) -> Array:
        found: Array = numpy_helper.to_array(self.tensors[name])
        return found

    def add(self, name: str, value: Array) -> str:
        made = numpy_helper.from_array(value, name)
        self.proto.graph.initializer.append(made)
        self.tensors[name] = made
        return name

    def drop(self, name: str) -> None:
        """A constant, unless a node reads it still: a masked language model's embeddings are its decoder."""
        if not any(name in node.input for node in self.nodes):
            self.proto.graph.initializer.remove(self.tensors.pop(name))

    def instead(self, node: Any, *nodes: Any) -> None:
        """Puts ``nodes`` where ``node`` stood."""
        place = list(self.nodes).index(node)
        self.nodes.remove(node)
        for i, one in enumerate(nodes):
            self.nodes.insert(place + i, one)

    def save(self, path: Path) -> None:
        save(self.proto, path)

    def read(self, batches: Iterable[dict[str, Array]]) -> Iterator[dict[str, Array]]:
        """Of each batch what the linear layers read, ``[tokens, width]`` by name; padding is left out."""
        wanted = list(self.linear)
        proto = onnx.ModelProto.FromString(self.proto.SerializeToString())
        known = {one.name for one in proto.graph.output}
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in known)
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        for batch in batches:
            real = batch["attention_mask"].reshape(-1) > 0
            found = (one.reshape(-1, one.shape[-1]) for one in session.run(wanted, batch))
            yield {name: one[real] if len(one) == len(real) else one for name, one in zip(wanted, found, strict=True)}


def int8_embeddings(path: Path) -> None:
    """Embeddings as int8 with one scale a row, symmetric, as kd's own; standard operators alone.

    Those of token types stay float: every token of every text gets the same row, so that its rounding never averages
    out. On SST-2 it moved the logits ten times as far as that of words and positions together, for 3 kB.
    """
    graph = Graph(path)
    for node in [one for one in graph.nodes if one.op_type == "Gather" and graph.is_matrix(one.input[0])]:
        name, ids = node.input
        weight = graph.value(name)
        if len(weight) <= FEW:
            continue
        scale = np.maximum(np.abs(weight).max(1, keepdims=True), 1e-12) / LARGEST_INT8
        codes = graph.add(f"{name}.codes", np.rint(weight / scale).astype(np.int8))
        scales = graph.add(f"{name}.scales", scale.astype(np.float32))
        made = node.output[0]
        graph.instead(
            node,
            helper.make_node("Gather", [codes, ids], [f"{made}.codes"]),
            helper.make_node("Gather", [scales, ids], [f"{made}.scales"]),
            helper.make_node("Cast", [f"{made}.codes"], [f"{made}.cast"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", [f"{made}.cast", f"{made}.scales"], [made]),
        )
        graph.drop(name)
    graph.save(path)


def smooth(path: Path, batches: Iterable[dict[str, Array]], strength: float = 0.75) -> None:
    """Moves the size of outlying channels from what linear layers read to their weights, which is exact in float
    (SmoothQuant: Xiao et al. 2023, https://arxiv.org/abs/2211.10438, equation 4; ``strength`` is their alpha).

    Layers that read the same share one multiplication.
    """
    graph = Graph(path)
    largest: dict[str, Array] = {}
    for read in graph.read(batches):
        for name, values in read.items():
            found = np.abs(values).max(0)
            largest[name] = np.maximum(largest.get(name, found), found)
    for name, nodes in graph.linear.items():
        weights = np.max([np.abs(graph.value(node.input[1])).max(1) for node in nodes], 0)
        factor = np.maximum(largest[name], 1e-5) ** strength / np.maximum(weights, 1e-5) ** (1 - strength)
        factor = factor.astype(np.float32)
        scaled = f"{name}.smooth"
        for i, node in enumerate(nodes):
            plain, other = node.input[1], f"{node.input[1]}.smooth"
            graph.add(other, (graph.value(plain) * factor[:, None]).astype(np.float32))
            node.input[0], node.input[1] = scaled, other
            graph.drop(plain)
            if i == 0:
                kept = onnx.NodeProto.FromString(node.SerializeToString())
                inverse = graph.add(f"{name}.inverse", 1 / factor)
                graph.instead(node, helper.make_node("Mul", [name, inverse], [scaled]), kept)
    graph.save(path)
