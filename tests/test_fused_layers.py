"""An encoder layer in one function is the layer: numbers as good as autocast's, dropout, and where it steps aside."""

from __future__ import annotations

import contextlib
import copy
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import model
from lightning.pytorch.callbacks import Callback
from test_lit_module import settings
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification

from kd import fused_layers
from kd.architecture import POOLINGS
from kd.datamodule import TextDataModule
from kd.fit import fit
from kd.fused_layers import FusedLayer, TrainsFusedLayers, fuse, parts_of, reads_first_alone
from kd.heads import pooled_class
from kd.lit_module import FrozenTeacher
from kd.losses import HardLabelLoss, HiddenLoss
from kd.models import encoder_layers, recompute_activations
from kd.signals import Recorder
from kd.tasks import Classification

FAMILIES = ["bert", "roberta", "electra", "distilbert"]
NAMES = {"distilbert": ("attention_dropout", "dropout")}


def student_of(family: str, attention: float = 0.0, hidden: float = 0.0) -> Any:
    names = NAMES.get(family, ("attention_probs_dropout_prob", "hidden_dropout_prob"))
    rates: dict[str, Any] = dict(zip(names, (attention, hidden), strict=True))
    student = model(2, 64, model_type=family, **rates)
    torch.manual_seed(1)
    for weight in student.parameters():  # far from the start, where scores and biases are about 0
        weight.data += torch.randn_like(weight) * (0.1 if weight.ndim > 1 else 0.05)
    return student.train()


def numbers(
    student: Any, mask: Tensor, autocast: bool = True, signal: str = "hidden/2"
) -> tuple[Tensor, dict[str, Tensor]]:
    """The last states at real tokens, or of [CLS], and gradients of all weights."""
    torch.manual_seed(2)
    ids = torch.randint(5, 500, mask.shape)
    student.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = Recorder(student, [signal, "logits"])(input_ids=ids, attention_mask=mask)
    states = found[signal].float()
    states = states if signal == "cls/2" else states[mask.bool()]
    loss = (states @ torch.linspace(-1, 1, states.shape[1])).square().mean() + found["logits"].float().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    return states.detach(), {name: p.grad for name, p in student.named_parameters() if p.grad is not None}


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often layers were fused."""
    counted, masks = list[int](), fused_layers.masks

    def seen(*given: Any) -> Any:
        counted.append(1)
        return masks(*given)

    monkeypatch.setattr(fused_layers, "masks", seen)
    return counted


PADDED = torch.ones(6, 20, dtype=torch.long)
PADDED[::2, 13:] = 0
LONG = torch.ones(4, fused_layers.SHORT + 7, dtype=torch.long)  # torch's own softmax
LONG[::2, 13:] = 0
CASES = [
    *(pytest.param(how, mask, id=f"{how}-{name}") for how in ("sdpa", "eager")
      for name, mask in (("padded", PADDED), ("whole", torch.ones(4, 9, dtype=torch.long)))),
    pytest.param("eager", LONG, id="long"),  # by chance SDPA, which keeps scores in float32, can be much nearer there
]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("attention", "mask"), CASES)
def test_it_is_no_further_from_float32_than_autocast(
    family: str, attention: str, mask: Tensor, steps: list[int]
) -> None:
    student = student_of(family)
    student.set_attn_implementation(attention)
    exact, plain = numbers(student, mask, autocast=False), numbers(student, mask)
    assert not steps
    fuse(student)
    ours = numbers(student, mask)
    assert len(steps) == 2
    assert ours[0].dtype == plain[0].dtype == torch.float32

    def error(found: Tensor, right: Tensor) -> float:
        return float((found - right).norm())

    assert 0 < error(ours[0], exact[0]) < 1.25 * error(plain[0], exact[0])
    assert ours[1].keys() == plain[1].keys() == exact[1].keys()
    size = math.sqrt(sum(float(g.square().sum()) for g in exact[1].values()))
    for name, right in exact[1].items():
        assert ours[1][name].dtype == torch.float32
        assert error(ours[1][name], right) < 1.5 * error(plain[1][name], right) + 2e-4 * size, name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("attention", "mask"), CASES)
def test_a_last_layer_of_the_first_token_gives_the_same(
    family: str, attention: str, mask: Tensor, steps: list[int]
) -> None:
    """To bfloat16's rounding, and no further from float32 than the whole layer."""
    student = student_of(family)
    student.set_attn_implementation(attention)
    exact = numbers(student, mask, False, "cls/2")
    other = copy.deepcopy(student)
    fuse(student)
    fuse(other, first_alone=True)
    whole, alone = numbers(student, mask, True, "cls/2"), numbers(other, mask, True, "cls/2")
    assert len(steps) == 4
    assert float((alone[0] - whole[0]).norm()) < 0.01 * float(whole[0].norm())
    assert alone[1].keys() == whole[1].keys() == exact[1].keys()
    size = math.sqrt(sum(float(g.square().sum()) for g in exact[1].values()))
    errors = [
        math.sqrt(sum(float((found[1][name] - right).square().sum()) for name, right in exact[1].items()))
        for found in (whole, alone)
    ]
    assert errors[1] < 1.25 * errors[0] + 1e-3 * size
    for name, right in whole[1].items():
        assert float((alone[1][name] - right).norm()) < 0.02 * float(right.norm()) + 2e-4 * size, name


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("first_alone", [False, True])
def test_with_the_same_masks_dropout_is_that_of_the_layer(
    family: str, first_alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = student_of(family, 0.3, 0.2)
    student.set_attn_implementation("eager")
    layer, x = encoder_layers(student)[-1], torch.randn(3, 7, 64)
    parts = parts_of(layer, student.config)
    assert parts is not None
    torch.manual_seed(3)
    drawn = fused_layers.masks([(6, 7, 7), (21, 64), (21, 64)], parts.dropouts)
    assert (drawn[1] is None) == (family == "distilbert")
    left = [mask for mask in drawn if mask is not None]
    monkeypatch.setattr(fused_layers, "masks", lambda *_: drawn)

    def passed() -> list[Tensor]:
        inputs = x.clone().requires_grad_()
        student.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(inputs, None)
        assert out.shape[1] == (1 if first_alone and isinstance(layer, FusedLayer) else 7)
        out = out[:, :1] if first_alone else out
        out.float().square().sum().backward()
        assert inputs.grad is not None
        return [out.detach().float(), inputs.grad, *(p.grad.clone() for p in layer.parameters() if p.grad is not None)]

    given = iter(left)
    with monkeypatch.context() as patched:
        patched.setattr(nn.functional, "dropout", lambda y, *_, **__: y * next(given).view(y.shape))
        expected = passed()
    assert next(given, None) is None
    fuse(student, first_alone)
    if first_alone:  # of the same masks, the first token's
        drawn = [drawn[0][:, :1], *(mask if mask is None else mask.view(3, 7, 64)[:, 0] for mask in drawn[1:])]  # type: ignore[index]
    found = passed()
    for ours, theirs in zip(found, expected, strict=True):
        assert float((ours - theirs).norm()) < 0.02 * float(theirs.norm()) + 1e-2


def test_masks_have_the_rate_of_each_dropout() -> None:
    torch.manual_seed(0)
    for rates in ((0.1, 0.1, 0.1), (0.4, 0.0, 0.1), (0.0, 0.0, 0.0)):
        shapes = [(20, 50, 50), (400, 64), (400, 64)]
        for mask, shape, rate in zip(fused_layers.masks(shapes, rates), shapes, rates, strict=True):
            if rate == 0:
                assert mask is None
                continue
            assert mask is not None
            assert mask.shape == shape
            assert float((mask == 0).float().mean()) == pytest.approx(rate, abs=0.01)
            assert float(mask.max()) == pytest.approx(1 / (1 - rate), rel=5e-3)


def test_a_row_of_padding_alone_is_no_nan() -> None:
    student, mask = student_of("bert"), torch.ones(2, 5, dtype=torch.long)
    mask[0] = 0
    fuse(student)
    _, gradients = numbers(student, mask)
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_it_steps_aside(family: str, steps: list[int]) -> None:
    """Where parts of a layer are recorded, models are scored, or nothing is cast; then all is as it was, bit by bit."""
    student = student_of(family)
    plain = copy.deepcopy(student)
    fuse(student)
    ids = torch.randint(5, 500, (3, 8))

    def both(signals: list[str], autocast: bool) -> None:
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            ours, theirs = (Recorder(each, signals)(**given) for each in (student, plain))
        assert all(torch.equal(ours[signal], theirs[signal]) for signal in signals)

    both(["hidden/1", "hidden/2"], autocast=False)
    both(["query/1", "query/2"], autocast=True)
    assert not steps
    both(["query/1"], autocast=True)
    assert len(steps) == 1  # the other layer
    student.eval()
    plain.eval()
    both(["logits", "hidden/1", "hidden/2"], autocast=True)
    assert len(steps) == 1


def test_layers_that_it_does_not_know_are_left() -> None:
    class Fake(nn.Linear):
        """As a quantized training's."""

    other = model(2, 32, model_type="modernbert")
    assert all(parts_of(layer, other.config) is None for layer in encoder_layers(other))
    for change in ("relu", "linear", "all"):
        more: dict[str, Any] = {"hidden_act": "relu"} if change == "relu" else {}
        student = model(1, 32, **more)
        layer: Any = encoder_layers(student)[0]
        if change == "linear":
            layer.output.dense.__class__ = Fake
        if change == "all":
            layer.output.dropout.p = 1.0
        assert parts_of(layer, student.config) is None
        fuse(student)
        assert not isinstance(layer, FusedLayer)


def test_when_the_first_token_alone_is_read(data: TextDataModule, task: Classification, tmp_path: Path) -> None:
    """By the head and by the losses; seen by a training in what its last layer gives out."""
    cls = {"cls/1": 1, "cls/2": 2, "hidden/1": 1, "query/1": 1, "embedding": 0, "logits": None}
    for family in FAMILIES:
        assert reads_first_alone(student_of(family), cls)
        for other in ("hidden/2", "query/2", "attention/2"):
            assert not reads_first_alone(student_of(family), {"logits": None, other: 2})
    for how in POOLINGS:
        config = copy.deepcopy(model(2, 32).config)
        config.kd_pooling = how
        assert reads_first_alone(pooled_class("bert")(config), cls) == (how == "cls")
    assert not reads_first_alone(AutoModelForTokenClassification.from_config(model(2, 32).config), {"logits": None})
    given: list[int] = []
    for loss, expected in ((HardLabelLoss(1.0), True), (HiddenLoss(1.0, [[2, 2]]), False)):
        student, teacher, settings_ = model(2, 32), model(2, 32, seed=1), settings(precision="bf16-mixed")
        loss.setup(student.config, teacher.config, task)
        encoder_layers(student)[-1].register_forward_hook(lambda module, _, out: given.append(out.shape[1]))
        frozen, place = FrozenTeacher(teacher, loss.teacher_signals), tmp_path / str(expected)
        fitted = fit(student, task, {"one": loss}, frozen, data, settings_, place, "key", "title")
        [fused] = [each for each in fitted.trainer.callbacks if isinstance(each, TrainsFusedLayers)]  # type: ignore[attr-defined]
        assert fused.first_alone == expected == (1 in given)
        given.clear()


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_activations_and_a_second_look_are_the_same(family: str) -> None:
    found = []
    for again in (False, True):
        student = student_of(family, 0.1, 0.1)
        if again:
            recompute_activations(student)
        fuse(student)
        torch.manual_seed(3)
        ids = torch.arange(5, 45).view(2, 20)
        with torch.autocast("cpu", torch.bfloat16):
            loss = student(ids, attention_mask=torch.ones_like(ids)).logits.float().square().sum()
        weights = [weight for weight in student.parameters() if weight.requires_grad]
        looked = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)  # as method.diagnose does
        loss.backward()
        assert all(one is two.grad or torch.equal(one, two.grad) for one, two in zip(looked, weights, strict=True))
        found.append([weight.grad for weight in weights if weight.grad is not None])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


class Look(Callback):
    def __init__(self) -> None:
        self.fused: set[int] = set()
        self.fail = False

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        self.fused.add(sum(isinstance(module, FusedLayer) for module in pl_module.modules()))
        if self.fail:
            raise ArithmeticError


def test_a_student_trains_with_it_and_is_itself_afterwards(
    data: TextDataModule, task: Classification, tmp_path: Path, steps: list[int]
) -> None:
    for case, expected in (("float32", 0), ("bf16", 2), ("error", 2)):
        student, look = model(2, 32), Look()
        look.fail = case == "error"
        classes = [type(module) for module in student.modules()]
        loss = HardLabelLoss(weight=1.0)
        loss.setup(student.config, student.config, task)
        how = settings(precision="32-true" if case == "float32" else "bf16-mixed")
        with pytest.raises(ArithmeticError) if look.fail else contextlib.nullcontext():
            fit(student, task, {"hard": loss}, None, data, how, tmp_path / case, "key", "title", callbacks=[look])
        assert look.fused == {expected}
        assert [type(module) for module in student.modules()] == classes
        assert not any("parts" in vars(module) for module in student.modules())
        assert bool(steps) == (expected > 0)
        steps.clear()
