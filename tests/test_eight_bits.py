"""Which layers of an int4 export have eight bits."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import model
from test_export import exporter_of

from kd import export
from kd.export import eight_bits, gptq
from kd.export.source import Source
from kd.sources import TextData

UP = "bert.encoder.layer.0.intermediate.dense"


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_stand_for_weights(bits: int) -> None:
    generator = np.random.default_rng(0)
    weight, read = generator.normal(size=(6, 64)), generator.normal(size=(500, 64))
    codes, scales = gptq.quantized(weight, read.T @ read, 32, bits)
    assert codes.max() < 2**bits
    found = (codes.reshape(6, 2, 32) - 2.0 ** (bits - 1)) * scales[:, :, None]
    step = np.abs(weight).max() / 2 ** (bits - 1)
    assert np.abs(found.reshape(6, 64) - weight).max() < 3 * step  # half a step, and what makes up for other columns


def test_the_logits_move_as_far_as_a_rounded_layer_moves_them() -> None:
    """Small errors, one output: first order is all there is, and one sign stands for all logits."""
    network = model(num_labels=1).double().eval()
    names = [UP, "bert.encoder.layer.1.attention.self.value"]
    generator = torch.Generator().manual_seed(0)
    weights = {name: network.get_submodule(name).weight for name in names}
    errors = {
        name: 1e-6 * torch.randn(one.shape, generator=generator, dtype=one.dtype) for name, one in weights.items()
    }
    rows = torch.randint(5, 90, (6, 9), generator=generator)
    batches = [{"input_ids": part.numpy(), "attention_mask": np.ones((3, 9), int)} for part in torch.split(rows, 3)]
    found = eight_bits.moves(network, batches, errors)
    for name in names:
        changed = copy.deepcopy(network)
        changed.get_submodule(name).weight.data += errors[name]
        with torch.no_grad():
            moved = changed(input_ids=rows).logits - network(input_ids=rows).logits
        assert found[name] == pytest.approx(float(moved.square().mean()), rel=1e-3)


def test_the_worst_for_their_size_that_fit() -> None:
    moved = {"up": 8.0, "key": 5.0, "query": 1.0, "down": 2.0}
    sizes = {"up": 40, "key": 10, "query": 10, "down": 40}
    assert eight_bits.worst(moved, sizes, 0.05) == set()
    assert eight_bits.worst(moved, sizes, 0.4) == {"key", "query"}  # up is too large
    assert eight_bits.worst(moved, sizes, 0.5) == {"key", "up"}
    assert eight_bits.worst(moved, sizes, 0.99) == {"key", "up", "query"}


def bits_of_layers(path: Path, source: Source) -> dict[str, int]:
    """By linear layer, from the file: its node is called as that of the float model."""
    nodes = eight_bits.matrix_products(onnx.load(path.parents[1] / "onnx" / path.name), source.artefact.model)
    made = {node.name.rpartition(".")[0]: node for node in onnx.load(path).graph.node if node.op_type == "MatMulNBits"}
    values = {name: {one.name: one.i for one in node.attribute} for name, node in made.items()}
    return {layer: values[node]["bits"] for node, layer in nodes.items()}


def test_a_layer_that_would_move_the_logits_far_has_eight_bits(text: TextData, tmp_path: Path) -> None:
    exporter = exporter_of(text, tmp_path)
    for name, parameter in exporter.source.artefact.model.named_parameters():
        if name == f"{UP}.weight":  # one large weight a group makes its other weights coarse
            parameter.data[:, ::32] *= 40
    exporter.export(export.stored_target("onnx"), tmp_path / "export")
    target = replace(export.stored_target("onnx_int4"), calibration_rows=16, int8_share=0.3)
    made = exporter.export(target, tmp_path / "export")
    path = next(made.directory.glob("model.onnx*"))
    path.rename(made.directory / "model.onnx")
    bits = bits_of_layers(made.directory / "model.onnx", exporter.source)
    assert set(bits.values()) == {4, 8}
    assert bits[UP] == 8
    assert made.figures["mean_difference"] < 0.05
    whole = exporter.export(replace(target, int8_share=0.0), tmp_path / "without")
    assert whole.weights_bytes < made.weights_bytes
    assert whole.figures["mean_difference"] > made.figures["mean_difference"]
