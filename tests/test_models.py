"""Signals are transformers' own, and students made of layers compute what those layers compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import OWN, STORE, architecture, model

from kd import demo
from kd.architecture import SHAPE, as_conf
from kd.encoding import tokenizer_key
from kd.errors import UserError
from kd.from_teacher import student_of_layers
from kd.models import config_of, head_linear, load_model, load_tokenizer, tokenizer_for
from kd.signals import Recorder
from kd.tasks import Classification


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 200, (3, 10), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": (torch.arange(10) < torch.tensor([[10], [4], [7]])).long()}


FAMILIES = list(OWN)


@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_signals_equal_transformers_hidden_states(family: str, pad: int) -> None:
    teacher = model(3, 32, model_type=family, pad_token_id=pad)
    names = ["logits", "embedding", *(f"{kind}/{k}" for kind in ("hidden", "cls") for k in range(4))]
    padded = inputs()
    padded["input_ids"][padded["attention_mask"] == 0] = pad
    signals = Recorder(teacher, names)(**padded)
    expected = teacher(**padded, output_hidden_states=True)
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


def in_window(model: Any, layer: int, length: int) -> torch.Tensor:
    """``[L, L]``: which keys a layer, counted from 1, lets a query see."""
    everything = torch.ones(length, length, dtype=torch.bool)
    if model.config.model_type != "modernbert" or model.config.layer_types[layer - 1] == "full_attention":
        return everything
    places = torch.arange(length)
    return (places[:, None] - places).abs() <= int(model.config.local_attention) // 2


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_attention_signals_are_what_transformers_attends_with(family: str) -> None:
    """Taken under SDPA, which gives out no probabilities, against the eager attention of the same weights."""
    teacher = model(4, 32, num_attention_heads=4, model_type=family, initializer_range=0.5)
    assert teacher.config._attn_implementation == "sdpa"
    padded = inputs()
    kinds = ("query", "key", "value", "attention")
    signals = Recorder(teacher, [f"{kind}/{k}" for kind in kinds for k in range(1, 5)])(**padded)
    teacher.set_attn_implementation("eager")
    outputs = {}
    for k, layer in enumerate(layers_of(teacher), start=1):
        # the one linear layer that reads what the heads gave
        name = {"distilbert": "attention.out_lin", "modernbert": "attn.Wo"}.get(family, "attention.output.dense")
        layer.get_submodule(name).register_forward_pre_hook(lambda _m, args, k=k: outputs.update({k: args[0]}))
    probabilities = teacher(**padded, output_attentions=True).attentions
    real = padded["attention_mask"] != 0
    assert len(probabilities) == 4
    for k in range(1, 5):
        seen = (real[:, None, None] & in_window(teacher, k, 10)).expand_as(probabilities[k - 1])
        rebuilt = signals[f"attention/{k}"].masked_fill(~seen, -1e9).softmax(-1)
        rows = real[:, None, :, None].expand_as(rebuilt)
        torch.testing.assert_close(rebuilt[rows], probabilities[k - 1][rows], atol=2e-5, rtol=0)
        assert rebuilt[0].std() > 0.02  # of the row without padding: not the same for all keys
        attended = (probabilities[k - 1] @ signals[f"value/{k}"]).transpose(1, 2).flatten(2)
        torch.testing.assert_close(attended[real], outputs[k][real], atol=2e-5, rtol=1e-5)
        product = signals[f"query/{k}"] @ signals[f"key/{k}"].transpose(-1, -2) / 8**0.5
        torch.testing.assert_close(signals[f"attention/{k}"], product)


@torch.no_grad()
def test_query_and_key_are_taken_without_disturbing_the_rest() -> None:
    teacher = model(2, 32)
    alone = Recorder(teacher, ["logits", "hidden/1", "cls/2"])(**inputs())
    beside = Recorder(teacher, ["logits", "hidden/1", "cls/2", "value/1", "attention/2"])(**inputs())
    assert set(beside) - set(alone) == {"value/1", "attention/2"}
    assert all(torch.equal(alone[name], beside[name]) for name in alone)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in teacher.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_scores_stay_float32_under_autocast_and_teach_query_and_key(family: str) -> None:
    student = model(2, 32, model_type=family)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        signals = Recorder(student, ["query/2", "key/2", "value/2", "attention/2"])(**inputs())
    assert signals["query/2"].dtype == signals["value/2"].dtype == torch.bfloat16
    product = signals["query/2"].float() @ signals["key/2"].float().transpose(-1, -2) / 16**0.5
    assert torch.equal(signals["attention/2"], product)
    weights = [m.weight for m in layers_of(student)[1].modules() if isinstance(m, torch.nn.Linear)]
    gradients = torch.autograd.grad(signals["attention/2"].square().mean(), weights, allow_unused=True)
    assert sum(g is not None and float(g.abs().max()) > 0 for g in gradients) == (1 if family == "modernbert" else 2)


@pytest.mark.parametrize("signal", ["hidden/4", "hiden/1", "cls/x", "attention/0", "query/4", "values/1"])
def test_an_unknown_signal_is_refused(signal: str) -> None:
    with pytest.raises(UserError, match="known are logits, embedding"):
        Recorder(model(3, 32), [signal])


def layers_of(model: Any) -> Any:
    """Independently of the table of families: the only list of modules in a small model."""
    (layers,) = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    return layers


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_student_of_layers_is_the_teachers_layers(family: str) -> None:
    teacher = model(6, 32, model_type=family)
    student = student_of_layers(teacher, "uniform", 3)
    assert student.config.num_hidden_layers == 3
    assert teacher.config.num_hidden_layers == 6
    for i, j in ((0, 2), (1, 4), (2, 6)):
        ours, theirs = layers_of(student)[i], layers_of(teacher)[j - 1]
        own, tensors = ours.state_dict(), theirs.state_dict()
        changed = {name for name, tensor in tensors.items() if name not in own or not torch.equal(own[name], tensor)}
        assert changed == ({"attn_norm.weight", "attn.Wqkv.weight"} if family == "modernbert" and i == 0 else set())
        assert not set(map(id, ours.parameters())) & set(map(id, teacher.parameters()))
    whole = student_of_layers(teacher, "first", 6)
    assert torch.equal(whole(**inputs()).logits, teacher(**inputs()).logits)
    first = student_of_layers(teacher, [1, 2], None)
    signals = Recorder(teacher, ["hidden/2"])(**inputs())
    below = Recorder(first, ["hidden/2"])(**inputs())["hidden/2"]
    if family == "modernbert":  # whose last state is normed
        signals["hidden/2"] = teacher.model.final_norm(signals["hidden/2"])
    assert torch.equal(below, signals["hidden/2"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_without_a_head_gets_the_tasks(family: str, tmp_path: Path, task: Classification) -> None:
    model(2, 32, model_type=family).base_model.save_pretrained(tmp_path / "base")
    loaded = load_model(tmp_path / "base", task)
    assert not loaded.has_head
    assert loaded.model.config.id2label == {0: "negative", 1: "positive"}
    model(2, 32, model_type=family).save_pretrained(tmp_path / "head")
    loaded = load_model(tmp_path / "head", task)
    assert loaded.has_head
    head = loaded.model.classifier
    assert head_linear(loaded.model) is getattr(head, "out_proj", head)


def test_a_config_says_what_conf_said() -> None:
    """DistilBERT's config calls the fields otherwise; its attribute_map knows three of the four."""
    made = config_of(architecture(3, 32, model_type="distilbert"), Classification(demo.LABELS))
    assert (made.n_layers, made.dim, made.n_heads, made.hidden_dim) == (3, 32, 2, 64)
    assert (made.num_hidden_layers, made.hidden_size) == (3, 32)
    back = as_conf(made.to_dict(), "distilbert")
    assert {key: back[key] for key in SHAPE} == architecture(3, 32, model_type="distilbert")


def test_distilbert_gets_no_token_types_also_when_read_back(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"the soup was good".split()]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    own = {}
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for family, name in (("bert", "BertTokenizer"), ("distilbert", "DistilBertTokenizer")):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
        own[family] = load_tokenizer(tmp_path)
    adapted = tokenizer_for("distilbert", own["bert"])
    assert set(own["bert"]("the soup")) == {"input_ids", "token_type_ids", "attention_mask"}
    assert set(adapted("the soup")) == {"input_ids", "attention_mask"}
    assert tokenizer_for("bert", own["bert"]) is own["bert"]
    keys = {tokenizer_key(tokenizer, inputs=False) for tokenizer in (*own.values(), adapted)}
    assert len(keys) == 1  # losses on tokens may compare them
    assert tokenizer_key(adapted) == tokenizer_key(own["distilbert"]) != tokenizer_key(own["bert"])
    adapted.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text('{"model_type": "kd-quantized"}')
    assert set(load_tokenizer(tmp_path / "saved")("the soup")) == {"input_ids", "attention_mask"}


def test_a_config_without_a_model_type_is_one_clear_paragraph(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]")
    with pytest.raises(
        UserError, match='config.json does not say what kind of model this is: add "model_type": "bert"'
    ):
        load_tokenizer(tmp_path)


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
