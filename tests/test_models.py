"""Signals are transformers' own, and students made of layers compute what those layers compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import STORE, model

from kd import demo
from kd.errors import UserError
from kd.models import load_model, load_tokenizer, student_of_layers
from kd.signals import Recorder
from kd.tasks import Classification


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 200, (3, 10), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": (torch.arange(10) < torch.tensor([[10], [4], [7]])).long()}


@torch.no_grad()
def test_signals_equal_transformers_hidden_states() -> None:
    teacher = model(3, 32)
    names = ["logits", "embedding", *(f"{kind}/{k}" for kind in ("hidden", "cls") for k in range(4))]
    signals = Recorder(teacher, names)(**inputs())
    expected = teacher(**inputs(), output_hidden_states=True)
    assert set(signals) == set(names)
    assert torch.equal(signals["logits"], expected.logits)
    assert torch.equal(signals["embedding"], expected.hidden_states[0])
    for k in range(4):
        assert torch.equal(signals[f"hidden/{k}"], expected.hidden_states[k])
        assert torch.equal(signals[f"cls/{k}"], expected.hidden_states[k][:, 0])


def test_the_recorder_leaves_no_hook_behind() -> None:
    teacher = model(2, 32)
    Recorder(teacher, ["hidden/1", "embedding"])(**inputs())
    assert not any(module._forward_hooks for module in teacher.modules())


@pytest.mark.parametrize("signal", ["hidden/4", "hiden/1", "cls/x", "attention/1"])
def test_an_unknown_signal_is_refused(signal: str) -> None:
    with pytest.raises(UserError, match="known are logits, embedding"):
        Recorder(model(3, 32), [signal])


@torch.no_grad()
def test_a_student_of_layers_is_the_teachers_layers() -> None:
    teacher = model(6, 32)
    student = student_of_layers(teacher, "uniform", 3)
    assert student.config.num_hidden_layers == 3
    assert teacher.config.num_hidden_layers == 6
    for i, j in ((0, 2), (1, 4), (2, 6)):
        ours, theirs = student.bert.encoder.layer[i].state_dict(), teacher.bert.encoder.layer[j - 1].state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert not set(map(id, student.bert.encoder.layer[i].parameters())) & set(map(id, teacher.parameters()))
    whole = student_of_layers(teacher, "first", 6)
    assert torch.equal(whole(**inputs()).logits, teacher(**inputs()).logits)
    first = student_of_layers(teacher, [1, 2], None)
    signals = Recorder(teacher, ["hidden/2"])(**inputs())
    assert torch.equal(Recorder(first, ["hidden/2"])(**inputs())["hidden/2"], signals["hidden/2"])


def test_a_checkpoint_without_a_head_gets_the_tasks(tmp_path: Path, task: Classification) -> None:
    model(2, 32).base_model.save_pretrained(tmp_path / "base")
    loaded = load_model(tmp_path / "base", task)
    assert not loaded.has_head
    assert loaded.model.config.id2label == {0: "negative", 1: "positive"}
    model(2, 32).save_pretrained(tmp_path / "head")
    assert load_model(tmp_path / "head", task).has_head


def test_a_checkpoint_that_lacks_its_head_is_no_fine_tuned_one(tmp_path: Path, task: Classification) -> None:
    from safetensors.torch import load_file, save_file

    model(2, 32).save_pretrained(tmp_path)
    tensors = {k: v for k, v in load_file(tmp_path / "model.safetensors").items() if not k.startswith("classifier")}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks classifier\.bias"):
        load_model(tmp_path, task)


def test_an_encoder_with_missing_layers_is_refused(tmp_path: Path, task: Classification) -> None:
    from safetensors.torch import load_file, save_file

    model(2, 32).base_model.save_pretrained(tmp_path)
    tensors = {k: v for k, v in load_file(tmp_path / "model.safetensors").items() if "layer.1.output" not in k}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="of the encoder"):
        load_model(tmp_path, task)


@pytest.mark.skipif(not STORE.is_dir(), reason="the store is not beside this checkout")
def test_the_stores_float16_model_loads_as_float32() -> None:
    directory = STORE / "models" / "minilm_l6"
    loaded = load_model(directory, Classification(demo.LABELS))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert not loaded.has_head
    assert len(load_tokenizer(directory)) == loaded.model.config.vocab_size
