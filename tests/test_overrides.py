"""student.overrides takes effect, in every kind of student; what would do nothing or break is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import architecture, model

from kd import demo
from kd.build import build_losses
from kd.check import check_values
from kd.command_line import check_command_line, compose
from kd.contradictions import contradictions
from kd.errors import UserError
from kd.models import load_tokenizer
from kd.pair import Pair, find_pair, make_student
from kd.tasks import Classification

TASK = Classification(demo.LABELS)
SMALL = [
    f"{role}.architecture.{key}={value}"
    for role in ("teacher", "student")
    for key, value in {**architecture(4, 32), "num_hidden_layers": 4 if role == "teacher" else 2}.items()
    if key != "model_type"
]


def student_of(*lines: str, teacher: Any = None, directory: Path | None = None) -> Any:
    """The student of a run, made as run.py makes it."""
    pair = Pair({"student": directory}, {"student": demo.tokenizer()})
    cfg = compose(["data=demo", *lines])
    check_values(cfg)
    build_losses(cfg, TASK)
    return make_student(cfg, pair, teacher, TASK)


def dropouts(layer: Any) -> set[float]:
    return {module.p for module in layer.modules() if isinstance(module, torch.nn.Dropout)}


def test_on_random_weights() -> None:
    small = ["teacher=tiny_demo", "student=distilbert_tiny", "method=hard"]
    made = student_of(
        *small, "student.overrides.attention_dropout=0.0", "+student.overrides.dropout=0.3",
        "++student.overrides.dim=64",
        "student.overrides={n_layers: 3, hidden_dim: 96, activation: relu}", "student.overrides.vocab_size=600",
        "student.overrides.sinusoidal_pos_embds=true", "student.overrides.seq_classif_dropout=0.4",
    )  # fmt: skip
    assert [len(made.distilbert.transformer.layer), made.config.dim, made.config.hidden_dim] == [3, 64, 96]
    assert dropouts(made.distilbert.transformer.layer[0].attention) == {0.0}
    assert dropouts(made.distilbert.transformer.layer[0].ffn) == dropouts(made.distilbert.embeddings) == {0.3}
    assert made.dropout.p == 0.4
    assert made.distilbert.transformer.layer[2].ffn.activation(torch.tensor(-1.0)) == 0
    assert made.distilbert.embeddings.word_embeddings.weight.shape == (600, 64)
    table = made.distilbert.embeddings.position_embeddings.weight.detach().numpy()
    angles = np.arange(512)[:, None] / 10000 ** (np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(table[:, 0::2], np.sin(angles), atol=1e-6)
    np.testing.assert_allclose(table[:, 1::2], np.cos(angles), atol=1e-6)


@torch.no_grad()
def test_on_weights_that_are_there(tmp_path: Path) -> None:
    stored = model(2, 32)
    stored.save_pretrained(tmp_path)
    lines = [*SMALL, "method=hard", f"student.weights={tmp_path}"]
    made = student_of(*lines, "student.overrides.hidden_dropout_prob=0.0", directory=tmp_path)
    assert dropouts(made.bert.encoder.layer[0].output) == {0.0}
    assert made.bert.encoder.layer[0].attention.self.dropout.p == 0.1
    assert all(torch.equal(made.state_dict()[name], tensor) for name, tensor in stored.state_dict().items())
    rounder = student_of(*lines, "student.overrides.layer_norm_eps=0.5", directory=tmp_path)
    ids = torch.tensor([[2, 30, 31, 3]])
    assert torch.equal(made(ids).logits, stored(ids).logits)
    assert not torch.allclose(rounder(ids).logits, stored(ids).logits)


@pytest.mark.parametrize(
    ("family", "field"), [("bert", "attention_probs_dropout_prob"), ("distilbert", "attention_dropout")]
)
@torch.no_grad()
def test_on_layers_of_the_teacher(family: str, field: str) -> None:
    teacher = model(4, 32, model_type=family)
    lines = [line for line in SMALL if line.startswith("teacher")] + ["student=layers", "student.num_layers=2"]
    lines += [f"teacher.architecture.model_type={family}", "method=pkd"]
    made = student_of(*lines, f"student.overrides.{field}=0.0", teacher=teacher)
    plain = student_of(*lines, teacher=teacher)
    attention = [module for name, module in made.named_modules() if name.endswith(("attention.self", "attention"))]
    assert all(0.0 in dropouts(module) for module in attention)
    assert getattr(made.config, field) == 0.0
    assert getattr(teacher.config, field) == 0.1
    ids = torch.tensor([[2, 30, 31, 3]])
    assert torch.equal(made(ids).logits, plain(ids).logits)
    assert made.config.num_hidden_layers == 2
    assert made.config._attn_implementation == plain.config._attn_implementation
    assert not set(map(id, made.parameters())) & set(map(id, teacher.parameters()))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("student.overrides.hidden_droput_prob=0", "of bert has no such field. Did you mean 'hidden_dropout_prob'?"),
        ("student.overrides.sinusoidal_pos_embds=true", "has no such field. The config of distilbert has it."),
        ("student=distilbert +student.overrides.hidden_act=relu", "The config of bert, roberta, electra has it."),
        ("student.overrides.num_labels=3", "kd sets num_labels itself"),
        ("student.overrides.id2label.0=no", "kd sets id2label itself"),
        ("student.overrides.vocab_size=512", "weights of student=bert_small fit vocab_size=30522 only"),
        ("student=distilbert student.overrides.n_layers=3", "weights of student=distilbert fit num_hidden_layers=6"),
        ("student=distilbert student.overrides.sinusoidal_pos_embds=true", "it says how random weights start"),
        ("student=layers student.overrides.num_hidden_layers=2", "the number of layers is student.num_layers"),
        ("student=layers student.overrides.hidden_size=64", "the teacher's weights, which fit hidden_size=1024 only"),
        ("student.weights=random student.overrides.hidden_size=none", "must be a whole number above 0"),
        ("student.overrides.hidden_dropout_prob=0.1,0.2 student.overrides.hidden=1", "has no such field"),
        ("student.overrides=[1]", "a group of settings"),
    ],
)  # fmt: skip
def test_what_is_refused_on_the_command_line(line: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        check_command_line(line.split())
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("student.overrides.type_vocab_size=3", r"token_type_embeddings.weight of shape \(2, 512\) only"),
        ("student.overrides.hidden_dropout_prob=2", "no model can be made so: dropout probability has to be between"),
        ("student.overrides.hidden_dropout_prob=much", "no model can be made so: .*expected float, got str"),
        ("student.overrides.hidden_act=gleu", "no model can be made so: .*gleu"),
        ("student=layers student.overrides.type_vocab_size=3", "has the teacher's weights, which fit bert.emb"),
    ],
)  # fmt: skip
def test_what_transformers_refuses_is_found_before_the_teacher_is_loaded(line: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        build_losses(compose(line.split()), TASK)


def test_every_check_sees_the_overridden_value() -> None:
    random = ["student=distilbert_small", "teacher=minilm_l6"]
    assert compose([*random]).optimizer.lr == 1e-4
    for key in ("dim", "hidden_size"):
        assert compose([*random, f"student.overrides.{key}=1024"]).optimizer.lr == 5e-5
    for lines, says in (
        (["student.overrides.max_position_embeddings=64"], "more than the 64 positions of student=distilbert_small"),
        (["student.overrides.vocab_size=512"], "set student.overrides.vocab_size=30522"),
        (["student.overrides.n_heads=7"], "num_attention_heads=7 does not divide its hidden_size=512"),
        (["student.overrides.hidden_dim=200", "quant=int4"], "does not divide intermediate_size=200"),
    ):
        (found,) = contradictions(compose([*random, *lines]))
        assert says in found
    losses = build_losses(compose([*random, "student.overrides.n_layers=3", "student.overrides.dim=64"]), TASK)
    assert losses["patient"].student_signals == ("cls/1", "cls/2")
    assert {tuple(weight.shape) for weight in losses["patient"].parameters()} == {(384, 64)}


def test_a_student_without_a_tokenizer_reads_with_the_teachers_if_it_can(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "soup"]))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    data: Any = SimpleNamespace(tokenizer=demo.tokenizer())
    lines = ["teacher=tiny_demo", f"teacher.weights={tmp_path}", "data=demo"]
    for vocabulary, size in (("6", 6), ("5", len(demo.tokenizer()))):
        cfg = compose([*lines, "student=distilbert_tiny", f"student.overrides.vocab_size={vocabulary}"])
        assert len(find_pair(cfg, data).tokenizers["student"]) == size
    cfg = compose([*lines, "student=distilbert_tiny", "teacher.architecture.vocab_size=6"])
    tokenizers = find_pair(cfg, data).tokenizers
    assert len(tokenizers["student"]) == len(load_tokenizer(tmp_path)) == cfg.student.architecture.vocab_size
    assert "token_type_ids" not in tokenizers["student"].model_input_names
    assert "token_type_ids" in tokenizers["teacher"].model_input_names
