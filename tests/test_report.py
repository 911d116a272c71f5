from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import model

from kd.artefact import load
from kd.datamodule import TextDataModule
from kd.errors import UserError
from kd.report import Entry, measure, score, sentence, table
from kd.table import markdown_table
from kd.tasks import Classification


def figures(accuracy: float, size: int, latency: float | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "validation": {"accuracy": accuracy}, "test": {"accuracy": accuracy}, "test_retention": accuracy / 0.9,
        "test_agreement": 0.9, "parameters": 1_000_000, "weights_bytes": size,
    }  # fmt: skip
    return found | ({"latency_ms_p50": latency} if latency else {})


def report(latency: float | None = None) -> dict[str, Any]:
    models = {
        "teacher": figures(0.9, 4_000_000, 2.0), "student": figures(0.88, 2_000_000, 1.0),
        "student-int8": figures(0.87, 500_000, latency),
    }  # fmt: skip
    return {
        "select": "accuracy",
        "higher_is_better": True,
        "models": models,
        "teacher_beats_chance": True,
        "student_beats_chance": True,
        "rows": {"test": 100},
    }


def test_the_sentence_knows_when_less_is_better() -> None:
    told = report(0.5) | {"select": "accuracy", "higher_is_better": False}
    told["models"]["student"]["test"] = {"accuracy": 1.8}
    assert "The student has 2.00 times the teacher's test accuracy with" in sentence(told)
    assert "at -0.93 accuracy." in sentence(told)


def test_the_table_shows_what_was_not_measured_as_a_dash() -> None:
    lines = table(report()).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "97.8 %" in lines[3]
    assert lines[4].count("–") == 3
    assert markdown_table(["", "ab"], [["x", "1"]]).splitlines() == ["|   | ab |", "| - | -: |", "| x |  1 |"]


def test_the_sentence_says_when_int8_is_slower() -> None:
    assert "2.0 times slower than float at batch 1" in sentence(report(2.0))
    assert "0.50 times the float student's time" in sentence(report(0.5))
    assert "25 % of the float student's bytes at -1.00 points" in sentence(report())
    assert "does not beat guessing" in sentence(report() | {"teacher_beats_chance": False})
    assert "keeps 97.8 % of the teacher's test accuracy with 2.0 times fewer bytes" in sentence(report())


def test_scores_are_those_of_the_rows(data: TextDataModule, task: Classification) -> None:
    entries = [Entry(name, model(2, 32, seed=i), "student", 1, 1) for i, name in enumerate(("teacher", "student"))]
    score(entries, data, task, torch.device("cpu"))
    texts, labels = data.data.splits["test"]["text"], torch.tensor(data.data.splits["test"]["label"])
    encoded = data.data.tokenizer(list(texts), padding=True, return_tensors="pt", truncation=True, max_length=32)
    with torch.no_grad():
        answers = [entry.model(**encoded).logits.argmax(-1) for entry in entries]
    for entry, answer in zip(entries, answers, strict=True):
        assert entry.figures["test"]["accuracy"] == pytest.approx(float((answer == labels).float().mean()))
    assert entries[1].figures["test_agreement"] == pytest.approx(float((answers[0] == answers[1]).float().mean()))
    assert entries[0].figures["test_agreement"] == 1


def test_measuring_is_bounded_and_takes_turns() -> None:
    entries = [Entry(str(i), model(1, 32), "student", 1, 1) for i in range(2)]
    start = time.perf_counter()
    measure(entries, seconds=1.0)
    assert time.perf_counter() - start < 10
    assert all(entry.figures["rows_per_second"] > 0 for entry in entries)
    assert all(entry.figures["latency_ms_p95"] >= entry.figures["latency_ms_p50"] for entry in entries)


def test_loading_what_is_no_classifier_is_refused(tmp_path: Path, data: TextDataModule) -> None:
    model(2, 32).base_model.save_pretrained(tmp_path)
    data.data.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds no trained classifier"):
        load(tmp_path)
    with pytest.raises(UserError, match=r"no config\.json"):
        load(tmp_path / "gone")


def test_an_artefact_answers_by_label_name(tmp_path: Path, data: TextDataModule) -> None:
    model(2, 32).save_pretrained(tmp_path)
    data.data.tokenizer.save_pretrained(tmp_path)
    artefact = load(tmp_path)
    rows = artefact.predict(["the soup was good", "the waiter was rude although the soup was good"])
    assert [set(row["probabilities"]) for row in rows] == [{"negative", "positive"}] * 2
    assert all(max(row["probabilities"], key=row["probabilities"].get) == row["label"] for row in rows)
    assert artefact.predict("the soup was good")[0]["probabilities"] == pytest.approx(
        rows[0]["probabilities"], abs=1e-5
    )
    assert artefact.predict([]) == []
