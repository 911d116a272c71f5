"""Fake-quantized, converted and reloaded are one model; integers are what they should be."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
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
from kd.schemes import SCHEMES, Settings, refusal

FILES = sorted(path.stem for path in (ROOT / "conf" / "quant").glob("*.yaml") if path.stem != "none")
TRAINED = [name for name in FILES if name.endswith("_qat") and "static" not in name]
STATIC = [name for name in FILES if "static" in name]  # in tests of their own
NAMES = [name for name in FILES if name not in STATIC]


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
def trained(name: str, family: str = "bert", **changes: Any) -> Any:
    """A model prepared and moved by a few steps, so that scales are not those of the start."""
    student = model(2, 64, model_type=family)
    quantization.prepare(student, settings(name, **changes))
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


@pytest.mark.parametrize("name", TRAINED)
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
    student = model(2, 64, model_type=family)
    converted, summary = quantization.convert(student, settings(name))
    size = save_quantized(tmp_path / "q", converted, demo.tokenizer(), 32, settings(name), summary)
    logits = kd.load(tmp_path / "q").model(**inputs()).logits
    assert torch.equal(logits, converted(**inputs()).logits)
    assert not torch.equal(logits.float(), student(**inputs()).logits)
    assert size == (tmp_path / "q" / "model.safetensors").stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize(("name", "more"), [*((name, {}) for name in TRAINED), ("int4_qat", {"symmetric": False})])
@torch.no_grad()
def test_a_fresh_process_gives_the_trained_logits(name: str, more: dict[str, Any], tmp_path: Path) -> None:
    student, own = trained(name, **more), settings(name, **more)
    converted, summary = quantization.convert(student, own)
    save_quantized(tmp_path / "q", converted, demo.tokenizer(), 32, own, summary)
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


def test_a_block_that_does_not_divide_names_the_layer() -> None:
    student = model(2, 60)
    with pytest.raises(UserError, match=r"nf4 cuts weights into blocks of 64, and the 60 x 60 weights of bert.encoder"):
        quantization.convert(student, settings("nf4"))
    kept = ["*attention*", "*pooler*", "*layer.*.intermediate.dense", "*layer.1.*"]
    with pytest.raises(UserError, match=r"of bert.encoder.layer.0.output.dense are no whole"):
        quantization.convert(student, settings("nf4", keep_float=kept))


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


@pytest.mark.parametrize(("name", "changes", "says"), [
    ("int8", {"qat": True}, r"scheme=int8_dynamic cannot be trained.*int8_dynamic_trained"),
    ("int8", {"scheme": "int8_dynamc"}, r"known are bf16, int8_dynamic.*Did you mean 'int8_dynamic'"),
    ("int8", {"group_size": 32}, r"scheme=int8_dynamic takes no quant.group_size"),
    ("int8", {"symmetric": True}, r"scheme=int8_dynamic takes no quant.symmetric"),
    ("int8", {"calibration_rows": 64}, r"scheme=int8_dynamic takes no quant.calibration_rows"),
    ("int8", {"start_step": 5}, r"quant=int8 takes no quant.start_step: it quantizes after training"),
    ("int4", {"learning_rate_scale": 0.5}, r"quant=int4 takes no quant.learning_rate_scale"),
    ("int4", {"group_size": None}, r"scheme=int4_weight_only needs a quant.group_size"),
    ("int4", {"group_size": 33}, r"group_size=33: two weights share a byte"),
    ("int4_qat", {"start_step": -1}, r"start_step is at least 0"),
    ("bf16", {"embeddings": False}, r"scheme=bf16 takes no quant.embeddings: it is the whole network"),
    ("bf16", {"keep_float": ["*"]}, r"scheme=bf16 takes no quant.keep_float"),
])  # fmt: skip
def test_what_a_scheme_does_not_take_is_refused_by_name(name: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        settings(name, **changes)


def test_layers_are_kept_float_by_name() -> None:
    student = model(2, 64)
    converted, summary = quantization.convert(student, settings("int4", keep_float=["*.layer.0.*", "*pooler.dense"]))
    kept = [name for name, why in summary.skipped.items() if why == "quant.keep_float"]
    assert len(kept) == 6 + 1
    assert all(".layer.0." in name or "pooler" in name for name in kept)
    for name in kept:
        assert torch.equal(converted.get_submodule(name).weight, student.get_submodule(name).weight)
    with pytest.raises(UserError, match=r"bert.pooler.dens names no linear layer.*Did you mean 'bert.pooler.dense'"):
        quantization.convert(student, settings("int4", keep_float=["bert.pooler.dens"]))


@pytest.mark.parametrize("name", TRAINED)
@torch.no_grad()
def test_switched_off_it_is_the_float_model(name: str) -> None:
    student = model(2, 64)
    plain = student(**inputs()).logits
    quantization.prepare(student, settings(name))
    assert not torch.allclose(student(**inputs()).logits, plain, atol=1e-6)
    quantization.switch(student, False)
    assert torch.equal(student(**inputs()).logits, plain)
    quantization.switch(student, True)
    assert not torch.allclose(student(**inputs()).logits, plain, atol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_of_int4_are_float16_numbers_and_no_weight_is_far_off(symmetric: bool) -> None:
    rows = torch.randn(8, 128, generator=torch.Generator().manual_seed(0)) * torch.logspace(-7, 2, 8)[:, None]
    integers, scale, zero = quantize(rows, Grid(4, 32, symmetric))
    assert torch.equal(scale.half().float(), scale)
    assert -8 <= int(integers.min()) < int(integers.max()) <= 7
    assert (zero is None) == symmetric
    error = (dequantize(integers, scale, zero) - rows).abs().reshape(8, 4, 32).amax(-1)
    assert (error[2:] <= 0.51 * scale[2:]).all()  # half a step; below 6e-5 float16 has fewer digits
    assert (error[:2] <= 1.5 * scale[:2]).all()


@pytest.mark.parametrize("name", FILES)
def test_the_head_of_a_file_says_where_it_runs(name: str) -> None:
    lines = (ROOT / "conf" / "quant" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    head = [line[2:] for line in lines if line.startswith("# ")]
    assert head[0] == f"@package quant.{name}"
    said = {line.split(":")[0]: line.split(":", 1)[1].strip() for line in head[2:]}
    assert list(said) == ["Runs on", "Needs", "Costs"]
    assert all(said.values())
    assert "TODO" not in "".join(head)
    devices = SCHEMES[settings(name).scheme].devices
    assert said["Runs on"].split(" (")[0].strip(".") == ", ".join(device.upper() for device in devices)


def test_a_scheme_that_a_machine_cannot_run_is_refused_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        assert refusal(settings(name), "cpu") is None
        assert refusal(settings(name), "cuda", (9, 0)) is None
    says = refusal(settings("bf16"), "cuda", (7, 5))
    assert says is not None
    assert "compute capability 8.0, and this one has 7.5" in says
    assert "scheme=int8_dynamic is the nearest" in says
    monkeypatch.setitem(SCHEMES, "fp8_weight_only", replace(SCHEMES["fp8_weight_only"], devices=("cuda",)))
    says = refusal(settings("fp8"), "cpu")
    assert says == (
        "quant=fp8 cannot run here: it runs on cuda, and this is cpu. Of quantization, scheme=int8_dynamic is the "
        "nearest that does."
    )
    assert "none of the schemes does" in str(refusal(settings("int4_qat"), "mps"))


def test_a_group_that_does_not_divide_names_the_layer() -> None:
    with pytest.raises(UserError, match="does not divide the width 64 of bert.embeddings.word_embeddings"):
        quantization.convert(model(2, 64), settings("int4", group_size=48))
