"""Fake-quantized, converted and reloaded are one model; integers are what they should be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import OWN, ROOT, model
from omegaconf import OmegaConf
from torch import nn

import kd
from kd import demo, quantization
from kd.artefact import save_quantized
from kd.errors import UserError
from kd.grid import Grid, dequantize, quantize
from kd.quantized_embedding import FakeQuantizedEmbedding, QuantizedEmbedding
from kd.schemes import Settings

NAMES = ["int8", "int8_qat", "int4", "int4_qat"]


def settings(name: str, **changes: Any) -> Settings:
    shipped = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "quant" / f"{name}.yaml"))
    assert isinstance(shipped, dict)
    return Settings(name, **{str(key): value for key, value in shipped.items()} | changes)


def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 200, (6, 12), generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": (torch.arange(12) < torch.tensor([[12], [3], [7], [5], [9], [2]])).long(),
    }


@torch.enable_grad()
def trained(name: str, family: str = "bert") -> Any:
    """A model prepared and moved by a few steps, so that scales are not those of the start."""
    student = model(2, 64, model_type=family)
    quantization.prepare(student, settings(name))
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    for _ in range(6):
        student.train()
        nn.functional.cross_entropy(student(**inputs()).logits, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        assert student.eval()(**inputs()).logits.std(0).min() > 1e-3  # rows differ: equal logits mean something
    return student


@pytest.mark.parametrize(("bits", "expected"), [
    (8, [-1, -0.40157480, 0.01574803, 0.29921260, 0.89763780]),
    (4, [-1, -0.42857143, 0, 0.28571429, 0.85714286]),
])  # fmt: skip
def test_v9_symmetric_integers(bits: int, expected: list[float]) -> None:
    row = 7 * torch.tensor([[-1, -0.4, 0.013, 0.3, 0.9]])  # by 7: the scale of int4 is 1, a float16 number
    rounded = dequantize(*quantize(row, Grid(bits)))
    torch.testing.assert_close(rounded, 7 * torch.tensor([expected]), atol=1e-6, rtol=0)


def test_zero_rows_stay_zero() -> None:
    assert torch.equal(dequantize(*quantize(torch.zeros(2, 8), Grid(8, 4))), torch.zeros(2, 8))


@pytest.mark.parametrize("name", ["int8_qat", "int4_qat"])
@pytest.mark.parametrize(
    ("family", "head"),
    [("bert", ["classifier"]), ("distilbert", ["pre_classifier", "classifier"]),
     ("roberta", ["classifier.dense", "classifier.out_proj"]), ("electra", ["classifier.dense", "classifier.out_proj"]),
     ("modernbert", ["head.dense", "classifier"])],
)  # fmt: skip
@torch.no_grad()
def test_converted_logits_equal_the_trained_ones(name: str, family: str, head: list[str]) -> None:
    student = trained(name, family)
    converted, summary = quantization.convert(student, settings(name))
    torch.testing.assert_close(converted(**inputs()).logits, student(**inputs()).logits, atol=1e-5, rtol=0)
    plain = quantization.without_fake_quantization(student)
    assert not torch.allclose(plain(**inputs()).logits, student(**inputs()).logits, atol=1e-5)
    assert list(summary.skipped) == head
    float_names = set(model(2, 64, model_type=family).state_dict())
    assert set(plain.state_dict()) == set(student.state_dict()) == float_names


@pytest.mark.parametrize("family", list(OWN))
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_reloaded_logits_equal_the_converted_ones(name: str, family: str, tmp_path: Path) -> None:
    converted, summary = quantization.convert(model(2, 64, model_type=family), settings(name))
    tokenizer = demo.tokenizer()
    size = save_quantized(tmp_path / "q", converted, tokenizer, 32, settings(name), summary)
    loaded = kd.load(tmp_path / "q")
    assert torch.equal(loaded.model(**inputs()).logits, converted(**inputs()).logits)
    assert size == (tmp_path / "q" / "model.safetensors").stat().st_size
    config = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    assert (config["scheme"], config["layers"]) == (settings(name).scheme, summary.quantized)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int8_qat", "int4_qat"])
@torch.no_grad()
def test_a_fresh_process_gives_the_trained_logits(name: str, tmp_path: Path) -> None:
    student = trained(name)
    converted, summary = quantization.convert(student, settings(name))
    save_quantized(tmp_path / "q", converted, demo.tokenizer(), 32, settings(name), summary)
    torch.save(inputs(), tmp_path / "inputs.pt")
    code = (
        "import kd, torch, sys; d = sys.argv[1]; m = kd.load(d + '/q').model;"
        "torch.save(m(**torch.load(d + '/inputs.pt', weights_only=True)).logits, d + '/logits.pt')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)
    logits = torch.load(tmp_path / "logits.pt", weights_only=True)
    torch.testing.assert_close(logits, student(**inputs()).logits, atol=1e-5, rtol=0)


def test_all_layers_but_the_head_are_quantized_unless_asked() -> None:
    student = model(2, 64)
    count = sum(isinstance(m, nn.Linear | nn.Embedding) for m in student.modules())
    _, summary = quantization.convert(student, settings("int8"))
    assert (len(summary.quantized), list(summary.skipped)) == (count - 1, ["classifier"])
    assert str(summary).startswith(f"quantized {count - 1} of {count} layers, skipped 1 (classifier: ")
    _, summary = quantization.convert(student, settings("int8", head=True))
    assert len(summary.quantized) == count
    converted, summary = quantization.convert(student, settings("int8", embeddings=False))
    assert all("embeddings" in name for name in summary.skipped if name != "classifier")
    assert not any(isinstance(m, QuantizedEmbedding) for m in converted.modules())


def test_convert_works_on_a_copy() -> None:
    student = model(2, 64)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    quantization.convert(student, settings("int8"))
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())


def test_prepare_keeps_the_parameters_themselves() -> None:
    student = model(2, 64)
    before = dict(student.named_parameters())
    quantization.prepare(student, settings("int8_qat"))
    after = dict(student.named_parameters())
    assert before.keys() == after.keys()
    assert all(after[name] is parameter for name, parameter in before.items())


def test_embeddings_look_up_first_and_learn_only_the_rows_used(monkeypatch: pytest.MonkeyPatch) -> None:
    table = nn.Embedding(1000, 32)
    fake = FakeQuantizedEmbedding.of(table, Grid(8))
    seen: list[torch.Size] = []

    def spy(rows: torch.Tensor, grid: Grid) -> Any:
        seen.append(rows.shape)
        return quantize(rows, grid)

    monkeypatch.setattr("kd.quantized_embedding.quantize", spy)
    fake(torch.tensor([[3, 5, 3]])).sum().backward()
    assert seen == [torch.Size([1, 3, 32])]
    assert table.weight.grad is not None
    assert table.weight.grad.abs().sum(1).nonzero().flatten().tolist() == [3, 5]
    assert table.weight.grad[3, 0] == 2  # as if nothing had been rounded


def test_a_scheme_that_cannot_be_trained_is_refused() -> None:
    with pytest.raises(UserError, match="int8_dynamic cannot be trained.*int8_dynamic_trained"):
        settings("int8", qat=True)
    with pytest.raises(UserError, match="known are int8_dynamic"):
        settings("int8", scheme="int7")


def test_a_group_that_does_not_divide_names_the_layer() -> None:
    with pytest.raises(UserError, match="does not divide the width 64 of bert.embeddings.word_embeddings"):
        quantization.convert(model(2, 64), settings("int4", group_size=48))


def test_stock_transformers_refuses_a_quantized_artefact_by_name(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    converted, summary = quantization.convert(model(2, 64), settings("int8"))
    save_quantized(tmp_path / "q", converted, demo.tokenizer(), 32, settings("int8"), summary)
    with pytest.raises(ValueError, match="kd-quantized"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "q")


def test_int8_takes_at_most_0_30_of_the_float_bytes(tmp_path: Path) -> None:
    student = model(2, 96, vocab_size=512)
    student.save_pretrained(tmp_path / "float")
    converted, summary = quantization.convert(student, settings("int8_qat"))
    size = save_quantized(tmp_path / "q", converted, demo.tokenizer(), 32, settings("int8_qat"), summary)
    assert size <= 0.30 * (tmp_path / "float" / "model.safetensors").stat().st_size
