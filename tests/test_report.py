from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import model

from kd.artefact import load, save_float
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


def test_the_tables_show_what_was_not_measured_as_a_dash_and_leave_out_what_never_was() -> None:
    good, fast = (part.splitlines() for part in table(report()).split("\n\n"))
    assert len({len(line) for line in good}) == len({len(line) for line in fast}) == 1
    assert "97.8 %" in good[3]
    assert [cell.strip() for cell in fast[0].split("|")[1:-1]] == ["model", "p50 1x32"]
    assert fast[4].count("–") == 1
    assert "retention" in good[0]
    told = report()
    for one in told["models"].values():
        one.pop("latency_ms_p50", None)
    assert "p50" not in table(told)
    assert markdown_table(["", "ab"], [["x", "1"]]).splitlines() == ["|   | ab |", "| - | -: |", "| x |  1 |"]


def test_the_sentence_says_when_int8_is_slower() -> None:
    assert "2.0 times slower than float at batch 1" in sentence(report(2.0))
    assert "0.50 times the float student's time" in sentence(report(0.5))
    assert "25 % of the float student's bytes at -1.00 points" in sentence(report())
    assert "does not beat guessing" in sentence(report() | {"teacher_beats_chance": False})
    assert "keeps 97.8 % of the teacher's test accuracy with 2.0 times fewer bytes" in sentence(report())


def several() -> dict[str, Any]:
    told = report(2.0)
    told["models"] |= {
        "onnx": figures(0.88, 2_000_000, 0.5), "onnx_int8": figures(0.876, 600_000, 0.25),
        "openvino_int4": figures(0.875, 400_000, 0.5), "onnx_int4": figures(0.80, 300_000, 0.1),
    }  # fmt: skip
    return told | {"failed": {"onnx_int4": "agreement 91.0 %, at least 99 % is asked"}}


def test_of_several_artefacts_the_best_are_named_and_what_is_wrong_with_the_others() -> None:
    text = sentence(several())
    assert "Of 4 artefacts 3 stay within half a point of the float student's test accuracy" in text
    assert "the smallest of these is openvino_int4, 20 % of its bytes at -0.50 points" in text
    assert "the fastest at batch 1 is onnx_int8, 4.0 times as fast at -0.40 points." in text
    assert "Worse than that: student-int8 (-1.00 points)." in text
    assert "Slower than float at batch 1: student-int8 (2.0 times)." in text
    assert text.endswith("Failed: onnx_int4 (agreement 91.0 %, at least 99 % is asked).")
    told = several() | {"higher_is_better": False}
    for one in told["models"].values():
        one["test"] = {"accuracy": 1 - one["test"]["accuracy"]}
    assert "Of 4 artefacts 1 stays within half a percent of" in sentence(told)
    for name in ("onnx", "onnx_int8", "openvino_int4"):
        told["models"][name]["test"] = {"accuracy": 0.5}
    assert "Of 4 artefacts none stays within half a percent of the float student's test accuracy. Worse" in sentence(
        told
    )


def test_sixteen_points_in_a_picture_have_labels_that_do_not_overlap(tmp_path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from kd.picture import draw, scatter

    told = several() | {"title": "a title"}
    for i in range(11):  # close to each other, some at the very same place
        told["models"][f"student-scheme_{i}"] = figures(0.879 + 0.001 * (i % 3), 500_000, 1.0 + 0.05 * (i // 3))
    assert len(told["models"]) > 16
    figure = Figure(figsize=(9, 6), dpi=120)
    axes = figure.subplots()
    scatter(axes, told)
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert sorted(text.get_text().partition(",")[0] for text in axes.texts) == sorted(told["models"])
    assert not [(i, j) for j in range(len(boxes)) for i in range(j) if boxes[i].overlaps(boxes[j])]
    outside = axes.get_window_extent(renderer)
    assert all(outside.containsx(box.x0) and outside.containsx(box.x1) for box in boxes)
    draw(told, {"train/loss": [(1, 2.0), (2, 1.0)]}, tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


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


def test_measuring_stores_what_is_in_memory_alone(data: TextDataModule, task: Classification, tmp_path: Path) -> None:
    entries = [Entry(name, model(1, 32, seed=i), name, 1, 1) for i, name in enumerate(("teacher", "student"))]
    save_float(tmp_path / "student", entries[1].model, data.tokenizers["student"], 32, task=task)
    entries[1].directory = tmp_path / "student"
    about = measure(entries, data, task, seconds=0.0)
    assert about["reference"] == "student"
    assert entries[1].figures["speed_up"] == 1
    assert all(entry.figures["rows_per_second_real"] > 0 for entry in entries)
    assert sorted(path.name for path in data.cache.iterdir()) == ["tokens"]


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
