"""Fixed integer grids: what is trained, converted and reloaded is one model, and ranges come from real tokens alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import OWN, model
from test_quantization import inputs, settings
from torch import nn

import kd
from kd import demo, quantization
from kd.artefact import save_quantized
from kd.datamodule import TextDataModule
from kd.errors import UserError
from kd.input_range import InputRange, Observer, grid, integers
from kd.static_linear import FakeStaticLinear, StaticLinear, fake_layers

STATIC = settings("int8_static_qat")


def one_length() -> list[dict[str, torch.Tensor]]:
    ids = inputs()["input_ids"]
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]


@torch.enable_grad()
def trained(family: str = "bert") -> Any:
    student = model(2, 64, model_type=family)
    quantization.prepare(student, STATIC)
    quantization.calibrate(student, STATIC, one_length())
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    for _ in range(6):
        student.train()
        labels = torch.tensor([0, 1, 0, 1, 0, 1])
        nn.functional.cross_entropy(student(**inputs()).logits, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return student.eval()


@pytest.mark.parametrize("family", list(OWN))
@torch.no_grad()
def test_trained_converted_and_reloaded_logits_are_equal(family: str, tmp_path: Path) -> None:
    student = trained(family)
    converted, summary = quantization.convert(student, STATIC)
    expected = student(**inputs()).logits
    assert expected.std(0).min() > 1e-3
    assert torch.equal(converted(**inputs()).logits, expected)
    save_quantized(tmp_path / "q", converted, demo.tokenizer(), 32, STATIC, summary)
    assert torch.equal(kd.load(tmp_path / "q").model(**inputs()).logits, expected)
    moved = [layer.input_range.stretch.abs().max() for layer in fake_layers(student)]
    assert min(moved) > 0  # every range learned


def layer() -> FakeStaticLinear:
    torch.manual_seed(0)
    range_of = InputRange(16)
    range_of.bounds.copy_(torch.tensor([-1.0, 2.0]))
    return FakeStaticLinear.of(nn.Linear(16, 8), range_of)


def test_hand_computed_grid() -> None:
    scale, zero_point = grid(torch.tensor([-1.0, 1.55]))  # 2.55 / 255
    assert (round(scale.item(), 6), zero_point.item()) == (0.01, 100)
    values = torch.tensor([-3.0, -1.0, 0.0, 0.004, 0.006, 1.55, 9.0])
    assert integers(values, scale, zero_point).tolist() == [0, 0, 100, 100, 101, 255, 255]


def test_gradients_are_those_of_rounded_operands_and_stop_at_clipping() -> None:
    fake, given = layer(), torch.randn(5, 16, requires_grad=True)
    fake(given).square().sum().backward()
    converted = StaticLinear.of(fake)
    rounded_weight = (converted.weight * converted.scale[:, None]).requires_grad_()
    zero = converted.input_zero_point.float()
    steps = integers(given.detach(), converted.input_scale, zero) - zero
    rounded = (steps * converted.input_scale).requires_grad_()
    nn.functional.linear(rounded, rounded_weight, fake.bias).square().sum().backward()  # type: ignore[no-untyped-call]
    assert given.grad is not None
    assert rounded.grad is not None
    assert rounded_weight.grad is not None
    inside = (given > -1) & (given < 2)
    assert not inside.all()
    torch.testing.assert_close(given.grad, rounded.grad.where(inside, 0))
    torch.testing.assert_close(fake.weight.grad, rounded_weight.grad)


def test_the_range_learns_to_widen_where_clipping_hurts() -> None:
    fake, given = layer(), 3 * torch.randn(64, 16)
    optimizer = torch.optim.Adam([fake.input_range.stretch], lr=0.01)
    wanted = nn.functional.linear(given, fake.weight, fake.bias).detach()
    for _ in range(60):
        optimizer.zero_grad()
        (fake(given) - wanted).square().mean().backward()
        optimizer.step()
    low, high = fake.input_range().tolist()
    assert low < -5
    assert high > 5


def test_autocast_changes_nothing_inside_and_switched_off_it_is_the_plain_layer() -> None:
    fake, given = layer(), torch.randn(5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fake(given), layer()(given))
    fake.enabled = False
    assert torch.equal(fake(given), fake.plain()(given))


def test_query_key_and_value_share_one_range_and_copies_keep_that() -> None:
    student = model(2, 64)
    before = dict(student.named_parameters())
    quantization.prepare(student, STATIC)
    after = dict(student.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    attention = copy.deepcopy(student).bert.encoder.layer[0].attention.self
    assert attention.query.input_range is attention.key.input_range is attention.value.input_range
    assert len({layer.input_range for layer in fake_layers(student)}) == 2 * 4 + 1  # and the pooler's


def test_few_values_far_out_do_not_set_the_range() -> None:
    observer, draw = Observer(), torch.randn(80000, generator=torch.Generator().manual_seed(0))
    observer.see(torch.cat([draw, torch.tensor([40.0])]))
    low, high = observer.bounds().tolist()
    assert -5 < low < -2
    assert 2 < high < 20


def test_a_channel_that_lies_out_is_seen_whatever_the_shape() -> None:
    """Values at even steps of a batch would all be of a few channels."""
    values = torch.randn(32, 64, 512, generator=torch.Generator().manual_seed(0))
    values[..., 301] *= 15
    observer = Observer()
    observer.see(values)
    low, high = observer.bounds().tolist()
    assert low < -25
    assert high > 25


def test_a_layer_that_was_not_prepared_is_refused() -> None:
    with pytest.raises(UserError, match="int8_static.* calibrate"):
        STATIC.of.linears.convert(model(2, 64), ["bert.pooler.dense"], STATIC)  # type: ignore[union-attr]


def test_calibration_rows_are_the_same_ones_and_never_padded(data: TextDataModule) -> None:
    first, second = list(data.calibration_batches(40)), list(data.calibration_batches(40))
    assert sum(len(batch["input_ids"]) for batch in first) == 40
    assert all(batch["attention_mask"].all() for batch in first)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, second, strict=True))
    with pytest.raises(UserError, match="calibration_rows=65: .* has 64 training rows"):
        data.calibration_batches(65)
