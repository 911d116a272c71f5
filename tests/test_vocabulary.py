"""Students with another vocabulary: a trimmed one, or another tokenizer's."""

from __future__ import annotations

import json
import string
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import train
from conftest import STORE, architecture, model
from datasets import Dataset
from test_two_tokenizers import byte_pairs, sentences, stored, word_pieces

import kd
from kd import artefact, demo
from kd.build import build_losses
from kd.check import check_values
from kd.command_line import compose
from kd.contradictions import contradictions
from kd.errors import UserError
from kd.from_teacher import student_of_layers
from kd.models import load_model, load_tokenizer, random_model, tokenizer_for
from kd.pair import Pair, check_token_level, find_pair, make_student
from kd.tasks import Classification
from kd.transplant import check_tokenizer, transplant
from kd.vocabulary import trimmed

TASK = Classification(demo.LABELS)
FEW = Dataset.from_dict({"text": sentences()[:2], "text_pair": [sentences()[2], "the soup"]})
KINDS = {"bert": word_pieces, "roberta": byte_pairs, "distilbert": word_pieces, "electra": word_pieces}


def of_class(family: str) -> Any:
    """As the hub has them: a class of the family's own, rebuilt from the vocabulary when it is read."""
    from transformers import BertTokenizer, RobertaTokenizer

    plain = json.loads(KINDS[family]().backend_tokenizer.to_str())["model"]
    if family == "roberta":
        return RobertaTokenizer(vocab=plain["vocab"], merges=[tuple(pair) for pair in plain["merges"]])
    return BertTokenizer(vocab=plain["vocab"])


def tokens(tokenizer: Any, *texts: str) -> list[str]:
    return list(tokenizer.convert_ids_to_tokens(tokenizer(*texts)["input_ids"]))


@pytest.mark.parametrize("own_class", [False, True])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_trimmed_tokenizer_reads_its_text_as_before_and_knows_every_letter(
    family: str, own_class: bool, tmp_path: Path
) -> None:
    whole = of_class(family) if own_class else KINDS[family]()
    small, same = trimmed(whole, FEW)
    assert same
    assert len(small) < len(whole)
    assert sorted(small.get_vocab().values()) == list(range(len(small)))
    assert {*small.get_vocab()} < {*whole.get_vocab()}
    assert small.special_tokens_map == whole.special_tokens_map
    for row in FEW:
        assert tokens(small, row["text"], row["text_pair"]) == tokens(whole, row["text"], row["text_pair"])
    unread = [text for text in sentences() if tokens(small, text) != tokens(whole, text)]
    assert unread
    for text in [*sentences(), *("".join(string.printable[i:]) for i in range(60))]:
        assert whole.unk_token in tokens(whole, text) or small.unk_token not in tokens(small, text)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    small.save_pretrained(tmp_path)
    read = load_tokenizer(tmp_path)
    for text in sentences():
        assert read(text) == small(text)
    again, _ = trimmed(small, FEW)
    assert again.get_vocab() == small.get_vocab()


@pytest.mark.skipif(not STORE.is_dir(), reason="the store is not beside this checkout")
def test_a_real_vocabulary() -> None:
    whole = load_tokenizer(STORE / "models" / "minilm_l6")
    small, same = trimmed(whole, Dataset.from_dict({"text": ["Unbelievably 冷 soup, naïve: \u200b☃", "## [unused3]"]}))
    assert same
    assert 1990 < len(small) < 2020
    assert "[unused5]" not in small.get_vocab()
    assert tokens(whole, "soup cold") == ["[CLS]", "soup", "cold", "[SEP]"]
    assert tokens(small, "soup cold") == ["[CLS]", "soup", "c", "##o", "##l", "##d", "[SEP]"]
    assert small.mask_token_id == small.get_vocab()["[MASK]"] < 10


def test_other_tokenizers_are_refused() -> None:
    with pytest.raises(UserError, match="and this tokenizer is WordLevel. Leave student.vocabulary out"):
        trimmed(demo.tokenizer(), FEW)


@pytest.mark.parametrize("family", list(KINDS))
@torch.no_grad()
def test_a_trimmed_student_answers_as_the_whole_one(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    before = tokenizer_for(family, of_class(family))
    whole = random_model(architecture(2, 32, model_type=family, vocab_size=len(before) + 8), TASK, before)
    small = student_of_layers(whole, [1, 2], None)
    tokenizer = tokenizer_for(family, trimmed(before, FEW)[0])
    done = transplant(small, before, tokenizer)
    assert done == f"{len(before) + 8} -> {len(tokenizer)} embeddings, {len(tokenizer)} of them as they were, none new"
    texts = [*FEW["text"], *FEW["text_pair"]]
    expected = whole(**before(texts, padding=True, return_tensors="pt")).logits
    ours = small(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)
    assert small.config.vocab_size == small.get_input_embeddings().num_embeddings == len(tokenizer)
    artefact.save_float(tmp_path / "student", small, tokenizer, 62)
    torch.testing.assert_close(kd.load(tmp_path / "student").logits(texts), expected, atol=1e-6, rtol=0)
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    encoded = AutoTokenizer.from_pretrained(tmp_path / "student")(texts, padding=True, return_tensors="pt")
    torch.testing.assert_close(stock(**encoded).logits, expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_new_pieces_are_the_mean_of_the_old_pieces_of_their_text() -> None:
    from transformers import BertTokenizer

    def pieces(*words: str) -> Any:
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        return BertTokenizer(vocab={word: i for i, word in enumerate([*special, *words])})

    before = pieces("soup", "so", "##up", "good", "##s", "o", "##o", "u", "p", "s")
    after = pieces("##up", "soups", "up", "good", "xyz", "oo")
    small = model(1, 32, vocab_size=len(before))
    old = small.get_input_embeddings().weight.clone()
    done = transplant(small, before, after)
    new, ids, names = small.get_input_embeddings().weight, before.get_vocab(), after.get_vocab()
    assert torch.equal(new[:5], old[:5])
    for piece in ("##up", "good"):
        assert torch.equal(new[names[piece]], old[ids[piece]])
    torch.testing.assert_close(new[names["soups"]], (old[ids["soup"]] + old[ids["##s"]]) / 2)
    torch.testing.assert_close(new[names["oo"]], (old[ids["o"]] + old[ids["##o"]]) / 2)
    assert torch.equal(new[names["xyz"]], old[ids["[UNK]"]])
    assert done == "15 -> 11 embeddings, 7 of them as they were, 4 new, each the mean of the old pieces of its text"


@pytest.mark.parametrize(("old", "new"), [("bert", "roberta"), ("roberta", "bert")])
@torch.no_grad()
def test_word_pieces_and_byte_pairs_are_told_apart_by_what_they_stand_for(old: str, new: str) -> None:
    before, after = of_class(old), of_class(new)
    small = model(1, 32, model_type="bert", vocab_size=len(before))
    rows = small.get_input_embeddings().weight.clone()
    transplant(small, before, after)
    weight, theirs, ours = small.get_input_embeddings().weight, before.get_vocab(), after.get_vocab()
    begins, inside = ("Ġt", "t") if new == "roberta" else ("t", "##t")
    begun, within = ("Ġt", "t") if old == "roberta" else ("t", "##t")
    assert torch.equal(weight[ours[begins]], rows[theirs[begun]])
    assert torch.equal(weight[ours[inside]], rows[theirs[within]])
    for role in ("cls", "sep", "pad", "mask", "unk"):
        place, source = (each.convert_tokens_to_ids(getattr(each, f"{role}_token")) for each in (after, before))
        assert torch.equal(weight[place], rows[source])
    assert weight.isfinite().all()
    assert small.config.pad_token_id == after.pad_token_id


def test_a_robertas_padding_keeps_its_id() -> None:
    with pytest.raises(UserError, match="which is 1 in its own vocabulary and 0 in the other"):
        check_tokenizer(of_class("roberta"), of_class("bert"), "roberta", pairs=False)


def test_a_tokenizer_that_no_encoder_can_read_with_is_refused_before_the_teacher_is_trained() -> None:
    bare = of_class("bert")
    bare.pad_token = None
    with pytest.raises(UserError, match="has no pad token"):
        check_tokenizer(of_class("bert"), bare, "bert", pairs=False)
    check_tokenizer(of_class("bert"), of_class("roberta"), "bert", pairs=False)
    with pytest.raises(UserError, match="texts are pairs"):
        check_tokenizer(of_class("bert"), of_class("roberta"), "bert", pairs=True)


@pytest.fixture
def lines(tmp_path: Path) -> list[str]:
    """A BERT of 4 layers that reads with word pieces, and as many of its layers as wanted."""
    shape = stored(tmp_path / "bert", of_class("bert"), layers=4, width=32)
    return [
        "data=demo", "teacher=bert_mini", f"teacher.weights={tmp_path / 'bert'}", "student=layers",
        "student.num_layers=2", "data.max_length=62",
        *(f"teacher.architecture.{key}={value}" for key, value in shape.items() if key != "model_type"),
    ]  # fmt: skip


def demo_data() -> Any:
    return SimpleNamespace(
        tokenizer=None, text_columns=("text",), splits={"train": Dataset.from_dict({"text": sentences()[:3]})}
    )


@pytest.mark.parametrize(
    "student",
    [
        ["student=layers", "student.num_layers=2"],
        ["student=bert_mini", "student.weights=random"],
        ["student=bert_mini", "student.weights=teacher", "student.overrides={hidden_size: 16, num_attention_heads: 1, "
         "intermediate_size: 32, num_hidden_layers: 2, max_position_embeddings: 64}"],
    ],
)  # fmt: skip
def test_losses_on_tokens_are_allowed_where_the_pieces_are_the_same(lines: list[str], student: list[str]) -> None:
    cfg = compose([*lines[:3], *lines[5:], *student, "student.vocabulary=trim", "method=feature"])
    check_values(cfg)
    assert not contradictions(cfg)
    pair = find_pair(cfg, demo_data())
    assert len(pair.tokenizers["student"]) < len(pair.tokenizers["teacher"])
    losses = build_losses(cfg, TASK)
    check_token_level(losses, pair, TASK)
    with pytest.raises(UserError, match="token by token, but teacher and student have different tokenizers"):
        check_token_level(losses, Pair(pair.directories, pair.tokenizers, pair.before, same_pieces=False), TASK)
    shape = {"max_position_embeddings": 64, "vocab_size": len(pair.tokenizers["teacher"])}
    made = make_student(cfg, pair, model(4, 32, **shape), TASK)
    assert made.config.vocab_size == len(pair.tokenizers["student"])
    assert "->" in pair.made["student vocabulary"]


def test_a_student_with_weights_of_its_own_is_trimmed_too(lines: list[str], tmp_path: Path) -> None:
    whole = of_class("bert")
    shape = stored(tmp_path / "small", whole, layers=2, width=16)
    student = [f"student.architecture.{key}={value}" for key, value in shape.items() if key != "model_type"]
    cfg = compose([*lines[:3], *lines[5:], "student=bert_tiny", f"student.weights={tmp_path / 'small'}", *student,
                   "student.vocabulary=trim"])  # fmt: skip
    check_values(cfg)
    pair = find_pair(cfg, demo_data())
    made, small = make_student(cfg, pair, None, TASK), pair.tokenizers["student"]
    names = {i: token for token, i in small.get_vocab().items()}
    before = load_model(tmp_path / "small", TASK).model.get_input_embeddings().weight
    rows = [whole.get_vocab()[names[i]] for i in range(len(small))]
    assert torch.equal(made.get_input_embeddings().weight, before[rows])


def test_another_directory_is_another_tokenizer(lines: list[str], tmp_path: Path) -> None:
    byte_pairs().save_pretrained(tmp_path / "other")  # no model beside it
    cfg = compose([*lines, f"student.vocabulary={tmp_path / 'other'}", "method=feature"])
    check_values(cfg)
    pair = find_pair(cfg, demo_data())
    assert tokens(pair.tokenizers["student"], "the soup")[0] == "<s>"
    assert tokens(pair.tokenizers["teacher"], "the soup")[0] == "[CLS]"
    with pytest.raises(UserError, match="token by token, but teacher and student have different tokenizers"):
        check_token_level(build_losses(cfg, TASK), pair, TASK)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["student.vocabulary=trimm"], "no such directory. Did you mean 'trim'?"),
        (["student.vocabulary=/tmp"], "there is no tokenizer.json in it"),
        (["student.vocabulary=trim", "data=wikipedia"], "data.task=masked_lm compares the chances of every piece"),
        (["student=bert_mini", "student.weights=random", "student.vocabulary=trim",
          "student.overrides.vocab_size=300"], "the size is that of student.vocabulary=trim"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_loaded(more: list[str], says: str) -> None:
    try:
        check_values(compose(["teacher=minilm_l6", "student=layers", *more]))
        found = contradictions(compose(["teacher=minilm_l6", "student=layers", *more]))
    except UserError as error:
        found = [str(error)]
    assert len(found) == 1
    assert says in found[0]


@pytest.mark.slow
def test_a_run_with_a_trimmed_student(lines: list[str], tmp_path: Path) -> None:
    done = train(
        tmp_path, *lines, "student.vocabulary=trim", "method=feature", "quant=int8", "data.source.rows=320",
        "data.source.scored_rows=100", "teacher.fine_tune.epochs=1", "trainer.max_epochs=1", "teacher.gate=false",
        "report.measure_seconds=0.3", "logger=csv", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Student from the teacher: layers 1 to 2 are its 2, 4 of 4" in done.stdout
    about = json.loads((tmp_path / "run" / "report.json").read_text())["about"]
    whole = load_tokenizer(tmp_path / "bert")
    for name in ("student", "student-int8"):
        student = kd.load(tmp_path / "run" / name)
        assert about["student vocabulary"].startswith(f"{len(whole)} -> {len(student.tokenizer)} embeddings")
        assert len(student.predict(["the soup was good"])) == 1
    again = train(tmp_path, f"resume={tmp_path / 'run'}")
    assert again.returncode == 0, again.stderr
