"""What families of models do in their own way: positions, windows, heads, paddings, what transformers reads back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import OWN, architecture, model
from torch import nn

import kd
from kd import artefact, demo, models
from kd.architecture import positions
from kd.check import check_values
from kd.command_line import compose
from kd.contradictions import contradictions
from kd.errors import UserError
from kd.from_teacher import student_of_layers
from kd.models import check_positions, random_model, tensor_shapes, tokenizer_for
from kd.tasks import Classification

FAMILIES = list(OWN)
TASK = Classification(demo.LABELS)
TEXTS = ["the soup was good", "nobody says that the waiter was rude but the soup was bland"]


def batch(rows: int, length: int, pad: int, cut: int = 0) -> dict[str, torch.Tensor]:
    """Random tokens; the first row ends ``cut`` tokens early."""
    ids = torch.randint(5, 500, (rows, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    if cut:
        ids[0, -cut:], mask[0, -cut:] = pad, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_padding_changes_no_logits(family: str) -> None:
    made = model(3, 32, model_type=family)
    padded = batch(2, 20, made.config.pad_token_id, cut=8)
    alone = made(padded["input_ids"][:1, :12], attention_mask=torch.ones(1, 12).long()).logits
    torch.testing.assert_close(made(**padded).logits[:1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_model_takes_as_many_tokens_as_kd_says(family: str) -> None:
    """One more would be an index error, or in ModernBERT, whose positions are no table, more than it was made for."""
    made = model(1, 32, model_type=family)
    usable = positions(made.config.to_dict())
    assert usable == (62 if family == "roberta" else 64)
    made(**batch(1, usable, made.config.pad_token_id))
    if family != "modernbert":
        with pytest.raises((IndexError, RuntimeError)):
            made(**batch(1, usable + 1, made.config.pad_token_id))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_random_model_knows_its_tokenizers_padding(family: str) -> None:
    tokenizer = demo.tokenizer()
    tokenizer.pad_token = "[SEP]"
    made = random_model(architecture(1, 32, model_type=family), TASK, tokenizer)
    tables = [module for module in made.modules() if isinstance(module, nn.Embedding) and module.num_embeddings == 512]
    assert [table.padding_idx for table in tables] == [tokenizer.pad_token_id] != [0]
    assert made.config.pad_token_id == tokenizer.pad_token_id
    if family == "modernbert":
        assert (made.config.cls_token_id, made.config.sep_token_id) == (2, 3)


def test_a_robertas_positions_end_earlier_with_a_later_padding() -> None:
    tokenizer = demo.tokenizer()
    tokenizer.pad_token = "[SEP]"
    shape = architecture(1, 32, model_type="roberta")
    check_positions("student", tokenizer, random_model(shape, TASK, tokenizer).config, 60)
    with pytest.raises(UserError, match="data.max_length=61 is more than the 60 tokens that the student takes"):
        check_positions("student", tokenizer, random_model(shape, TASK, tokenizer).config, 61)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["teacher=roberta_base", "data.max_length=513"], "more than the 512 positions of teacher=roberta_base"),
        (["teacher=roberta_base", "student=distilroberta", "data.max_length=512"], None),
        (["teacher=modernbert_large", "student=modernbert_base", "data.max_length=8192"], None),
        (["teacher=modernbert_large", "data.max_length=600"], "more than the 512 positions of student=bert_small"),
        (["student=electra_small", "quant=int4", "quant.group_size=256"], "embedding_size=128, the width of"),
    ],
)  # fmt: skip
def test_lengths_and_groups_are_checked_by_family(lines: list[str], says: str | None) -> None:
    found = contradictions(compose(lines))
    assert any(says in line for line in found) if says else found == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_vocabulary_of_any_size_makes_a_model(family: str) -> None:
    """ModernBERT's own padding is 50283; the check before loading knows no tokenizer yet."""
    shape = architecture(1, 32, model_type=family, vocab_size=40)
    del shape["pad_token_id" if "pad_token_id" in shape else "vocab_size"]
    assert tensor_shapes(shape, TASK)


@torch.no_grad()
def test_a_modernbert_of_layers_keeps_their_windows_and_reads_back(tmp_path: Path) -> None:
    teacher = model(6, 32, model_type="modernbert")
    types = [layer.attention_type for layer in teacher.model.layers]
    assert types == ["full_attention", "sliding_attention", "sliding_attention"] * 2
    ids = batch(2, 20, 3, cut=5)
    for keep in ([2, 4, 6], [1, 3], [4], [2, 3]):
        student = student_of_layers(teacher, keep, None)
        assert student.config.layer_types == [types[i - 1] for i in keep]
        student.save_pretrained(tmp_path)
        read = TASK.auto_class().from_pretrained(tmp_path)
        assert torch.equal(read(**ids).logits, student(**ids).logits)
        rebuilt = models.with_fields(student, {"classifier_dropout": 0.5})
        assert torch.equal(rebuilt(**ids).logits, student(**ids).logits)
        other = models.with_fields(student, {"layer_types": ["full_attention"] * len(keep)})
        assert torch.equal(other(**ids).logits, student(**ids).logits) == ("sliding_attention" not in types_of(student))
    assert teacher.config.layer_types == types


def types_of(model: Any) -> list[str]:
    return [layer.attention_type for layer in model.model.layers]


@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_the_first_layers_norm_goes_into_what_follows_it(bias: bool) -> None:
    teacher = model(3, 32, model_type="modernbert", norm_bias=bias, attention_bias=bias)
    norm = teacher.model.layers[1].attn_norm
    norm.weight.uniform_(0.5, 2.0)
    if bias:
        norm.bias.normal_()
    student = student_of_layers(teacher, [2], None)
    as_it_was = copy.deepcopy(teacher)
    as_it_was.model.layers = as_it_was.model.layers[1:2]
    assert isinstance(student.model.layers[0].attn_norm, nn.Identity)
    ids = batch(2, 20, 3)
    torch.testing.assert_close(student(**ids).logits, as_it_was(**ids).logits, atol=1e-3, rtol=0)
    as_it_was.model.layers[0].attn_norm = nn.Identity()
    assert not torch.allclose(student(**ids).logits, as_it_was(**ids).logits, atol=1e-3)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@torch.no_grad()
def test_a_modernbert_of_600_tokens_predicts_alike_in_every_form(pooling: str, tmp_path: Path) -> None:
    made = model(3, 32, model_type="modernbert", max_position_embeddings=1024, classifier_pooling=pooling)
    tokenizer = tokenizer_for("modernbert", demo.tokenizer())
    artefact.save_float(tmp_path / "student", made, tokenizer, 600)
    loaded = kd.load(tmp_path / "student")
    assert loaded.max_length == 600
    long, longer = (" ".join(["soup"] * 500 + ["good"] * count) for count in (98, 300))
    ids = tokenizer(long)["input_ids"]
    assert len(ids) == 600
    assert torch.equal(loaded.logits([long]), made(torch.tensor([ids])).logits)
    assert torch.equal(loaded.logits([longer]), loaded.logits([long]))  # both are cut at 600
    assert not torch.allclose(loaded.logits([long]), loaded.logits([" ".join(["soup"] * 598)]))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_stock_transformers_reads_model_and_tokenizer_of_every_family(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = tokenizer_for(family, demo.tokenizer())
    made = random_model(architecture(2, 32, model_type=family), TASK, tokenizer)
    artefact.save_float(tmp_path / "student", made, tokenizer, 32)
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    reader = AutoTokenizer.from_pretrained(tmp_path / "student")
    encoded = reader(TEXTS, padding=True, return_tensors="pt")
    assert set(encoded) == set(tokenizer(TEXTS))
    assert encoded["input_ids"].tolist() == tokenizer(TEXTS, padding=True)["input_ids"]
    assert torch.equal(stock(**encoded).logits, kd.load(tmp_path / "student").logits(TEXTS))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("student=roberta_base student.overrides.pad_token_id=0", "kd sets pad_token_id itself"),
        ("student=electra_small student.overrides.summary_type=mean", "electra does not use it to classify"),
        ("student=electra_small student.overrides.embedding_size=64", "fit embedding_size=128 only"),
        ("student=roberta_base student.overrides.type_vocab_size=2", "fit type_vocab_size=1 only"),
        ("student=modernbert_base student.overrides.hidden_dropout_prob=0.0", "bert, roberta, electra has it"),
    ],
)  # fmt: skip
def test_overrides_know_their_family(line: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_values(compose(line.split()))


def test_a_directory_with_other_embeddings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "electra", "embedding_size": 64}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"embedding_size=64; student=electra_small has embedding_size=128.*student.architecture.embedd"
    ):
        check_values(compose(["student=electra_small", f"student.weights={tmp_path}"]))
