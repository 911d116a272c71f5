"""Converted models as files: their bytes, and what happens to files that are not what was saved."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import model
from test_quantization import inputs, settings
from torch import nn

import kd
from kd import demo, quantization
from kd.artefact import save_float, save_quantized
from kd.check import check_shape
from kd.command_line import compose
from kd.errors import UserError
from kd.grid import Grid, Quantized, dequantize, one_a_byte, pack, quantize, two_a_byte, unpack
from kd.quantized_embedding import QuantizedEmbedding
from kd.schemes import Settings


def saved(directory: Path, name: str, student: Any = None, **changes: Any) -> tuple[Any, Settings]:
    """The converted model, of which an artefact now lies in the directory, and its settings."""
    own = settings(name, **changes)
    converted, summary = quantization.convert(student or model(2, 64), own)
    save_quantized(directory, converted, demo.tokenizer(), 32, own, summary)
    return converted, own


def header(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    parsed: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return parsed


@pytest.mark.parametrize("width", [1, 2, 7, 64])
def test_two_weights_a_byte_and_back(width: int) -> None:
    integers = (torch.arange(5 * width) % 16 - 8).to(torch.int8).reshape(5, width)
    packed = two_a_byte(integers)
    assert (packed.dtype, packed.shape) == (torch.uint8, (5, (width + 1) // 2))
    assert torch.equal(one_a_byte(packed, width), integers)


@pytest.mark.parametrize("grid", [Grid(8), Grid(4, 32), Grid(4, 32, symmetric=False)])
def test_a_packed_weight_is_the_same_numbers(grid: Grid) -> None:
    quantized = quantize(torch.randn(6, 96, generator=torch.Generator().manual_seed(0)), grid)
    again: Quantized = unpack(pack(quantized, grid), (6, 96), grid)
    assert torch.equal(dequantize(*again), dequantize(*quantized))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 64])
def test_int4_takes_the_bytes_that_arithmetic_says(symmetric: bool, group: int, tmp_path: Path) -> None:
    student = model(2, 192)
    layers = [
        m.weight for n, m in student.named_modules() if isinstance(m, nn.Linear | nn.Embedding) and n[:4] == "bert"
    ]
    others = sum(p.numel() for p in student.parameters()) - sum(weight.numel() for weight in layers)
    expected = 4 * others  # biases, norms, the head
    for rows, width in (weight.shape for weight in layers):
        groups = width // group
        expected += rows * (width // 2 + 2 * groups + (0 if symmetric else (groups + 1) // 2))
    saved(tmp_path / "q", "int4", student, group_size=group, symmetric=symmetric)
    data = (tmp_path / "q" / "model.safetensors").read_bytes()
    assert len(data) - 8 - int.from_bytes(data[:8], "little") == expected


def test_int8_takes_a_byte_a_weight_and_a_scale_a_row(tmp_path: Path) -> None:
    converted, own = saved(tmp_path / "q", "int8_weight_only")
    found = header(tmp_path / "q" / "model.safetensors")
    for name in quantization.layers_to_quantize(model(2, 64), own).quantized:
        mine = {key[len(name) + 1 :]: entry for key, entry in found.items() if key.startswith(f"{name}.")}
        dtypes = {key: entry["dtype"] for key, entry in mine.items() if key != "bias"}
        embedding = isinstance(converted.get_submodule(name), QuantizedEmbedding)
        weight, scale = ("weight", "scale") if embedding else ("weight.qdata", "weight.scale")
        zero = {} if embedding else {"weight.zero_point": "I8"}  # of torchao, all of them 0
        assert dtypes == {weight: "I8", scale: "F32"} | zero
        assert mine[scale]["shape"] == [mine[weight]["shape"][0], 1]


def test_int8_takes_at_most_0_30_of_the_float_bytes(tmp_path: Path) -> None:
    student = model(2, 96, vocab_size=512)
    student.save_pretrained(tmp_path / "float")
    saved(tmp_path / "q", "int8_qat", student)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("q", "float")]
    assert sizes[0] <= 0.30 * sizes[1]


@pytest.mark.parametrize("more", [{}, {"embeddings": False}])
def test_equal_models_are_equal_files(more: dict[str, Any], tmp_path: Path) -> None:
    for name in ("a", "b"):
        saved(tmp_path / name, "int8", **more)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second


def test_config_says_what_was_done(tmp_path: Path) -> None:
    saved(tmp_path / "q", "int4", group_size=64, keep_float=("bert.pooler.*",))
    about = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    assert {key: about[key] for key in ("format_version", "bits", "scheme", "group_size", "keep_float")} == {
        "format_version": 2, "bits": 4, "scheme": "int4_weight_only", "group_size": 64, "keep_float": ["bert.pooler.*"],
    }  # fmt: skip
    assert "bert.embeddings.word_embeddings" in about["layers"]
    assert "bert.pooler.dense" not in about["layers"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("how", ["cut", "changed", "missing"])
def test_a_file_that_is_not_what_was_saved_is_named(name: str, how: str, tmp_path: Path) -> None:
    saved(tmp_path / "q", "int4")
    path = tmp_path / "q" / name
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(data.replace(b"8", b"9", 1) if name.endswith("json") else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError) as caught:
        kd.load(tmp_path / "q")
    assert name in str(caught.value)
    assert str(tmp_path / "q") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_float_student_is_checked_too(tmp_path: Path) -> None:
    save_float(tmp_path / "s", model(2, 64), demo.tokenizer(), 32)
    weights = tmp_path / "s" / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match=r"model.safetensors is not what was saved.*sha256"):
        kd.load(tmp_path / "s")


def test_a_quantized_artefact_without_checksums_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "q", "int8")
    (tmp_path / "q" / "kd.json").unlink()
    with pytest.raises(UserError, match=r"kd.json has no checksum of the weights"):
        kd.load(tmp_path / "q")


@pytest.mark.parametrize("more", [{}, {"embeddings": False}])
def test_a_newer_format_is_refused(more: dict[str, Any], tmp_path: Path) -> None:
    saved(tmp_path / "q", "int8", **more)
    path = tmp_path / "q" / "config.json"
    path.write_text(path.read_text().replace('"format_version": 2', '"format_version": 3'))
    with pytest.raises(UserError, match=r"is of format 3, written by a newer kd; this one reads formats up to 2"):
        kd.load(tmp_path / "q")


def test_layers_that_do_not_fit_their_config_are_named(tmp_path: Path) -> None:
    saved(tmp_path / "q", "int4")
    config, about = (tmp_path / "q" / name for name in ("config.json", "kd.json"))
    config.write_text(config.read_text().replace('"group_size": 32', '"group_size": 64'))
    noted = json.loads(about.read_text())
    del noted["sha256"]["config.json"]
    about.write_text(json.dumps(noted))
    with pytest.raises(
        UserError, match=r"model.safetensors: bert.embeddings.word_embeddings cannot be read: .*by config"
    ):
        kd.load(tmp_path / "q")


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "state.pkl", "model.pt"])
def test_a_pickle_is_refused_and_not_opened(name: str, quantized: bool, tmp_path: Path) -> None:
    if quantized:
        saved(tmp_path / "m", "int8")
    else:
        save_float(tmp_path / "m", model(2, 64), demo.tokenizer(), 32)
    kd.load(tmp_path / "m")
    opened = tmp_path / "opened"
    code = f"c__builtin__\nexec\n(Vopen({str(opened)!r}, 'w')\ntR."  # a pickle that writes a file when it is loaded
    (tmp_path / "m" / name).write_text(code)
    with pytest.raises(UserError, match=rf"{name} can hold a pickle"):
        kd.load(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(UserError):
        kd.load(tmp_path / "m")
    assert not opened.exists()


def write_format_1(directory: Path, converted: Any, about: dict[str, Any]) -> None:
    """Over an artefact of today: its weights as torchao flattens them, as kd once did."""
    from safetensors.torch import save_file
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    state = {name: tensor.contiguous() for name, tensor in converted.state_dict().items()}
    tensors, metadata = flatten_tensor_state_dict(state)
    save_file(tensors, directory / "model.safetensors", metadata)
    shapes = {
        name: [*module.weight.shape, module.weight.shape[1] // module.scale.shape[1]]
        for name, module in converted.named_modules()
        if isinstance(module, QuantizedEmbedding)
    }
    config = json.loads((directory / "config.json").read_text())
    keys = ("quant_method", "model_type", "bits", "name", "scheme", "qat", "embeddings", "head", "group_size", "layers")
    old = {key: about[key] for key in keys} | {"format_version": 1, "embedding_shapes": shapes}
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": old}))
    (directory / "kd.json").write_text(json.dumps({"text_columns": ["text"]}))


@pytest.mark.parametrize("name", ["int8", "int8_qat", "int4"])
@torch.no_grad()
def test_the_first_format_is_still_read(name: str, tmp_path: Path) -> None:
    converted, _ = saved(tmp_path / "q", name)
    about = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    write_format_1(tmp_path / "q", converted, about)
    assert torch.equal(kd.load(tmp_path / "q").model(**inputs()).logits, converted(**inputs()).logits)


def test_stock_transformers_refuses_a_packed_artefact_by_name(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    saved(tmp_path / "q", "int8")
    with pytest.raises(ValueError, match="kd-quantized"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "q")


@pytest.mark.parametrize("more", [{}, {"embeddings": False}])
def test_a_quantized_artefact_is_no_start_for_a_training(more: dict[str, Any], tmp_path: Path) -> None:
    saved(tmp_path / "q", "int8", **more)
    with pytest.raises(UserError, match=r"student.weights=.* is a quantized model, which cannot be trained"):
        check_shape("student", compose(["student=bert_tiny"]), tmp_path / "q")


STOCK = """
import sys, torch
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1] + "/q").eval()
logits = model(**torch.load(sys.argv[1] + "/inputs.pt", weights_only=True)).logits
assert not any(name.split(".")[0] == "kd" for name in sys.modules)
torch.save(logits.detach(), sys.argv[1] + "/logits.pt")
print(type(model.get_submodule("bert.encoder.layer.0.intermediate.dense").weight).__name__)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [
    ("int8", "Int8Tensor"), ("int8_weight_only", "Int8Tensor"), ("fp8", "Float8Tensor"),
    ("int8_qat", "IntxUnpackedToInt8Tensor"), ("bf16", "Parameter"),
])  # fmt: skip
@torch.no_grad()
def test_linear_layers_alone_load_with_transformers_alone(name: str, kind: str, tmp_path: Path) -> None:
    converted, _ = saved(tmp_path / "q", name, **({} if name == "bf16" else {"embeddings": False}))
    torch.save(inputs(), tmp_path / "inputs.pt")
    done = subprocess.run([sys.executable, "-c", STOCK, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == kind
    assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), converted(**inputs()).logits)
    assert torch.equal(kd.load(tmp_path / "q").model(**inputs()).logits, converted(**inputs()).logits)
