"""A RoBERTa with byte-level BPE teaches a BERT with WordPiece: they read each text in tokens of their own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import train
from conftest import architecture
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer, processors

import kd
from kd import demo
from kd.build import build_losses
from kd.check import check_shape
from kd.command_line import compose
from kd.errors import UserError
from kd.models import load_tokenizer, random_model
from kd.pair import check_token_level, find_pair, first_difference
from kd.tasks import Classification, MaskedLM

TASK = Classification(demo.LABELS)


def sentences() -> list[str]:
    return list(demo.generate(rows=200, scored_rows=10, seed=0, noise=0.0).splits["train"]["text"])


def byte_pairs() -> Any:
    """A RoBERTa tokenizer in small: 300 entries of bytes and pairs of them."""
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer(add_prefix_space=True)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator(iter(sentences()), vocab_size=300, special_tokens=special)
    bpe.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, cls_token="<s>", pad_token="<pad>", sep_token="</s>", unk_token="<unk>",
        bos_token="<s>", eos_token="</s>", mask_token="<mask>",
    )  # fmt: skip


def word_pieces() -> Any:
    from transformers import PreTrainedTokenizerFast

    pieces = BertWordPieceTokenizer()
    pieces.train_from_iterator(iter(sentences()), vocab_size=200, show_progress=False)
    pieces.post_processor = processors.BertProcessing(("[SEP]", pieces.token_to_id("[SEP]") or 0), ("[CLS]", 2))
    assert pieces.token_to_id("[CLS]") == 2
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces._tokenizer, cls_token="[CLS]", pad_token="[PAD]", sep_token="[SEP]",
        unk_token="[UNK]", mask_token="[MASK]",
    )  # fmt: skip


def stored(directory: Path, tokenizer: Any, **shape: Any) -> dict[str, Any]:
    """A model without a head and its tokenizer, as from the hub; returns its architecture."""
    made = architecture(**{"vocab_size": len(tokenizer)} | shape)
    random_model(made, TASK, tokenizer).base_model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return made


@pytest.fixture
def lines(tmp_path: Path) -> list[str]:
    """A command line for both."""
    shapes = {
        "teacher": stored(tmp_path / "roberta", byte_pairs(), layers=4, width=64, model_type="roberta"),
        "student": stored(tmp_path / "bert", word_pieces(), layers=2, width=32),
    }
    return [
        "data=demo", "teacher=distilroberta", f"teacher.weights={tmp_path / 'roberta'}", "student=bert_tiny",
        f"student.weights={tmp_path / 'bert'}",
        *(f"{role}.architecture.{key}={value}" for role, shape in shapes.items() for key, value in shape.items()
          if key not in ("model_type", "pad_token_id")),
    ]  # fmt: skip


def test_each_reads_with_its_own_and_losses_on_tokens_name_what_differs(lines: list[str]) -> None:
    data: Any = SimpleNamespace(tokenizer=demo.tokenizer())
    pair = find_pair(compose(lines), data)
    text = sentences()[0]
    teacher, student = (pair.tokenizers[role](text) for role in ("teacher", "student"))
    assert (teacher["input_ids"][0], teacher["input_ids"][-1]) == (0, 2)
    assert len(teacher["input_ids"]) != len(student["input_ids"])
    assert set(teacher) == {"input_ids", "attention_mask"}
    for method in ("logit", "pkd"):
        check_token_level(build_losses(compose([*lines, f"method={method}"]), TASK), pair, TASK)
    with pytest.raises(UserError) as caught:
        check_token_level(build_losses(compose([*lines, "method=feature"]), TASK), pair, TASK)
    assert "have different tokenizers (position 0: '[PAD]' in the student's vocabulary against '<s>')" in str(
        caught.value
    )
    assert len(str(caught.value).splitlines()) == 1


def test_losses_on_tokens_need_equal_lengths() -> None:
    lines = ["data=demo", "teacher=minilm_l6", "student=layers", "data.max_length=32", "teacher.max_length=64"]
    for method in ("logit", "pkd"):
        build_losses(compose([*lines, f"method={method}"]), TASK)
    with pytest.raises(UserError, match=r"different lengths \(teacher.max_length=64, data.max_length=32\)"):
        build_losses(compose([*lines, "method=feature"]), TASK)
    for method in ("logit", "hard"):  # both read masked text, whether or not a loss compares them
        with pytest.raises(UserError, match="hides the same tokens .* but they have different lengths"):
            build_losses(compose([*lines, f"method={method}"]), MaskedLM())


def test_the_first_token_that_differs_is_named() -> None:
    ours, theirs = demo.tokenizer(), demo.tokenizer()
    assert first_difference(ours, theirs) == "the same vocabulary, but texts are cut up or completed in another way"
    theirs.add_tokens(["quince"])
    end = len(ours)
    assert first_difference(ours, theirs) == f"position {end}: nothing in the student's vocabulary against 'quince'"
    assert first_difference(ours, byte_pairs()) == "position 0: '[PAD]' in the student's vocabulary against '<s>'"


def test_all_sizes_of_another_shape_are_named_at_once(lines: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        check_shape("teacher", compose(lines[:3]), tmp_path / "roberta")
    fix = re.findall(r"teacher\.architecture\.\w+=\d+", str(caught.value))
    assert len(fix) == 6
    check_shape("teacher", compose([*lines[:3], *fix]), tmp_path / "roberta")


@pytest.mark.slow
def test_a_roberta_teaches_a_bert(lines: list[str], tmp_path: Path) -> None:
    done = train(
        tmp_path, *lines, "method=pkd", "quant=int8_qat", "data.max_length=62", "data.source.rows=640",
        "data.source.scored_rows=200", "teacher.fine_tune.epochs=2", "teacher.fine_tune.lr=1e-3",
        "trainer.max_epochs=2", "optimizer.lr=1e-3",
        "teacher.gate=false", "report.measure_seconds=0.3", "logger=csv", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert set(report["models"]) == {"teacher", "student", "student-int8_qat"}
    for name in ("student", "student-int8_qat"):
        student = kd.load(tmp_path / "run" / name)
        assert student.tokenizer.convert_ids_to_tokens(student.tokenizer("the soup")["input_ids"])[0] == "[CLS]"
        assert len(student.predict(["the soup was good"])) == 1
    (kept,) = (tmp_path / "cache" / "teachers").glob("distilroberta-*/kd.json")
    assert load_tokenizer(kept.parent)("the soup")["input_ids"][0] == 0
