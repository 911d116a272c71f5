"""Artefacts of every task, float and quantized: read back they give the same answers, also from the command line."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import OWN, architecture

from kd import artefact, cli, demo, quantization
from kd.models import random_model, tokenizer_for
from kd.schemes import Settings
from kd.tasks import MaskedLM, Task, TokenClassification

TAGS = ["O", "B-FOOD", "I-FOOD"]
INT8 = Settings("int8", "int8_dynamic", qat=False, head=True)


def saved(directory: Path, task: Task, family: str = "bert") -> dict[str, Any]:
    """A random model of the task: the paths of it as float and as int8, and both in memory."""
    tokenizer = tokenizer_for(family, demo.tokenizer())
    torch.manual_seed(0)
    made = random_model(architecture(model_type=family, vocab_size=512), task, tokenizer)
    made.config.pad_token_id = tokenizer.pad_token_id
    artefact.save_float(directory / "student", made, tokenizer, 32, ("text",), task)
    small, summary = quantization.convert(made, INT8)
    artefact.save_quantized(directory / "student-int8", small, tokenizer, 32, INT8, summary, ("text",), task)
    return {"float": directory / "student", "int8": directory / "student-int8", "made": small, "plain": made}


@pytest.mark.parametrize("family", OWN)
@pytest.mark.parametrize("task", [TokenClassification(TAGS), MaskedLM()], ids=lambda task: type(task).__name__)
def test_quantized_models_of_single_tokens_read_back_alike(task: Task, family: str, tmp_path: Path) -> None:
    """Also where a masked language model's layers share a tensor, of which the file has one."""
    places = saved(tmp_path, task, family)
    made = places["made"]
    encoded = artefact.load(places["int8"]).tokenizer("the soup was [MASK]", return_tensors="pt")
    back = artefact.load(places["int8"]).model
    assert back(**encoded).logits.equal(made(**encoded).logits)
    plain = artefact.load(places["float"]).model
    assert plain(**encoded).logits.equal(places["plain"](**encoded).logits)
    decoder = plain.get_output_embeddings()
    assert decoder is None or decoder.weight is plain.get_input_embeddings().weight


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_words_are_tagged_as_given_and_as_split(kind: str, tmp_path: Path) -> None:
    model = artefact.load(saved(tmp_path, TokenClassification(TAGS))[kind])
    as_text, as_words = model.predict(["the soup was good", ["the", "soup", "was", "good"]])
    assert as_text == as_words
    assert as_text["words"] == ["the", "soup", "was", "good"]
    assert len(as_text["tags"]) == len(as_text["tag_probabilities"]) == 4
    assert set(as_text["tags"]) <= set(TAGS)
    ids = model.tokenizer("the soup was good", return_tensors="pt")
    guesses = model.model(**ids).logits[0, 1:5].argmax(-1).tolist()
    assert as_text["tags"] == [TAGS[guess] for guess in guesses]
    (cut,) = model.predict([" ".join(["soup"] * 40)])
    assert len(cut["tags"]) == 40
    assert cut["tags"][30:] == ["O"] * 10  # 32 tokens with [CLS] and [SEP]
    assert model.predict([""])[0]["tags"] == []


def test_the_command_line_takes_texts_and_lists_of_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    student = saved(tmp_path, TokenClassification(TAGS))["float"]
    found = []
    for name, rows in (("words", [["the", "soup"], ["a", "cake"]]), ("texts", ["the soup", "a cake"])):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
        monkeypatch.setattr(sys, "argv", ["kd", "predict", "--model", str(student), "--input", str(path)])
        cli.main()
        found.append(list(csv.DictReader(capsys.readouterr().out.splitlines())))
    assert found[0][0]["text"] == '["the", "soup"]'
    assert [row["tags"] for row in found[0]] == [row["tags"] for row in found[1]]
    assert [len(row["tags"].split()) for row in found[0]] == [2, 2]


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_masks_are_filled(kind: str, tmp_path: Path) -> None:
    model = artefact.load(saved(tmp_path, MaskedLM())[kind])
    (found,) = model.predict(["the [MASK] was [MASK]"])
    assert len(found["fills"]) == 2
    best = [next(iter(fill)) for fill in found["fills"]]
    assert found["label"] == f"the {best[0]} was {best[1]}"
    assert all(0 < chance <= 1 for fill in found["fills"] for chance in fill.values())
