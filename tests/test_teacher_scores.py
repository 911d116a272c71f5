"""What a teacher answered is kept, and asked for again only where something is another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import model

from kd import teacher_scores
from kd.datamodule import TextDataModule
from kd.models import load_model
from kd.report import Entry
from kd.run import score_teacher
from kd.sources import TextData
from kd.tasks import Classification

CPU = torch.device("cpu")


def scored(teacher: Any, data: TextDataModule, task: Classification, cache: Path) -> Entry:
    entry = Entry("teacher", teacher, "teacher", 0, 0)
    score_teacher([entry], data, task, CPU, cache, teacher_scores.model_hash(teacher))
    return entry


def test_a_second_run_asks_nothing_and_knows_the_same(
    data: TextDataModule, task: Classification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = model(2, 32)
    first = scored(teacher, data, task, tmp_path)

    def asked(*_: Any) -> None:
        raise AssertionError("the teacher was run again")

    monkeypatch.setattr("kd.report.logits_of", asked)
    second = scored(model(2, 32), data, task, tmp_path)
    assert second.figures == first.figures
    assert set(first.logits) == {"validation", "test"}
    for split, logits in first.logits.items():
        assert torch.equal(second.logits[split], logits)
    with pytest.raises(AssertionError, match="run again"):
        scored(model(2, 32, seed=1), data, task, tmp_path)


def test_a_broken_file_is_said_and_made_anew(
    data: TextDataModule, task: Classification, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = scored(model(2, 32), data, task, tmp_path)
    (path,) = (tmp_path / "scores").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    second = scored(model(2, 32), data, task, tmp_path)
    assert "cannot be read" in capsys.readouterr().out
    assert second.figures == first.figures
    assert teacher_scores.read(tmp_path, path.stem)


def test_the_key_knows_weights_texts_length_and_task(text: TextData, tmp_path: Path) -> None:
    def data(**more: Any) -> TextDataModule:
        tokenizers = {"student": text.tokenizer, "teacher": text.tokenizer}
        return TextDataModule(text, tokenizers, tmp_path, **({"max_length": 32} | more))

    task, teacher = Classification(["negative", "positive"]), model(2, 32)
    nudged = model(2, 32)
    with torch.no_grad():
        nudged.classifier.bias[0] += 1e-6
    keys = [
        teacher_scores.scores_key(teacher_scores.model_hash(teacher), data(), task, CPU),
        teacher_scores.scores_key(teacher_scores.model_hash(nudged), data(), task, CPU),
        teacher_scores.scores_key(teacher_scores.model_hash(teacher), data(max_length=16), task, CPU),
        teacher_scores.scores_key(
            teacher_scores.model_hash(teacher), data(), Classification(["positive", "negative"]), CPU
        ),
        teacher_scores.scores_key(teacher_scores.model_hash(teacher), data(), task, torch.device("cuda")),
    ]
    assert len({*keys}) == len(keys)
    teacher.save_pretrained(tmp_path / "kept")
    again = load_model(tmp_path / "kept", task).model
    assert keys[0] == teacher_scores.scores_key(teacher_scores.model_hash(again), data(), task, CPU)
    assert keys[0] == teacher_scores.scores_key(
        teacher_scores.model_hash(model(2, 32)), data(batch_size=4, seed=3), task, CPU
    )
