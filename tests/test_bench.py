"""kd bench: which artefacts it finds, and what it says of them. The measuring itself is in test_measure.py."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import model
from omegaconf import OmegaConf

from kd import bench_command, demo
from kd.artefact import save_float
from kd.bench_command import bench, found, real_lengths
from kd.errors import UserError
from kd.export.directory import write_about
from kd.tasks import Classification

asked: list[tuple[list[str], float, int, int]] = []


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two students, an export and one that failed."""
    directory = tmp_path / "run"
    for name in ("student-int8", "student", "export/onnx", "export/onnx_int4"):
        save_float(directory / name, model(1, 32), demo.tokenizer(), 32, task=Classification(demo.LABELS))
    for name, passed in (("onnx", True), ("onnx_int4", False)):
        file = "model.safetensors" if passed else "model.safetensors.failed"
        files = {file: {"bytes": 7_000_000, "sha256": ""}, "tokenizer.json": {"bytes": 1, "sha256": ""}}
        about = {"passed": passed, "reasons": [], "files": files, "model_files": ["model.safetensors"]}
        target = {"name": name, "runtime": "onnxruntime"}
        write_about(directory / "export" / name, about | {"target": target, "figures": {"score": 0.75}})
    scores = {name: {"test": {"accuracy": 0.8}, "validation": {"accuracy": 0.7}} for name in ("student",)}
    (directory / "report.json").write_text(json.dumps({"select": "accuracy", "models": scores}))
    source = {"_target_": "kd.demo.generate", "rows": 40, "scored_rows": 40, "seed": 0, "noise": 0.0}
    OmegaConf.save({"data": {"source": source}, "paths": {}}, directory / "config.yaml")
    return directory


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures without measuring: 1, 2, 3 ... ms."""
    asked.clear()

    def measure(places: Sequence[Any], seconds: float, threads: int, lengths: Sequence[Any]) -> Any:
        asked.append(([place.name for place in places], seconds, threads, sum(map(len, lengths))))
        figures = {
            place.name: {"latency_ms_p50": float(i), "rows_per_second": 100.0 / i, "peak_memory_bytes": 1e6}
            for i, place in enumerate(places, 1)
        }
        return figures, ["a note"]

    monkeypatch.setattr(bench_command, "measure", measure)


def test_a_run_stands_for_all_it_has(run: Path, measured: None, tmp_path: Path) -> None:
    text = bench([run], 2, 5, None, tmp_path / "out")
    assert asked == [(["student", "student-int8", "onnx"], 5, 2, 40)]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == [
        "model",
        "validation",
        "test",
        "weights",
        "p50 1x32",
        "x 1x32",
        "rows/s 32x64",
        "x 32x64",
        "memory",
    ]
    assert lines[4] == ["onnx", "0.7500", "–", "7.00 MB", "3.00 ms", "0.33", "33", "0.33", "1 MB"]
    assert lines[2][:3] == ["student", "0.7000", "0.8000"]
    assert "2 threads" in text
    assert "Note: onnx_int4 is left out: it did not pass its gate; a note." in text
    written = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert set(written) == {"bench.json", "bench.md", "bench.png"}
    assert text in written["bench.md"].read_text()
    assert json.loads(written["bench.json"].read_text())["models"]["onnx"]["speed_up"] == pytest.approx(1 / 3)
    assert written["bench.png"].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_names_tell_models_of_several_runs_apart(run: Path) -> None:
    (run.parent / "other").symlink_to(run)
    names = [place.name for place in found([run, run / "student"])[0]]
    assert names == ["run/student", "run/student-int8", "run/onnx", "student"]
    assert [place.name for place in found([run / "student", run / "export" / "onnx_int4"])[0]] == [
        "student",
        "onnx_int4",
    ]
    assert [place.name for place in found([run / "student", run.parent / "other" / "student"])[0]][1].endswith(
        "other/student"
    )


def test_real_lengths_are_those_of_the_rows(run: Path, tmp_path: Path) -> None:
    places = found([run / "student"])[0]
    tokenizer, texts = demo.tokenizer(), demo.generate(40, 40, 0, 0.0).splits["validation"]["text"]
    assert [length for rows in real_lengths(places, None)[0] for length in rows] == [
        len(tokenizer(text)["input_ids"]) for text in texts
    ]
    (tmp_path / "rows.csv").write_text("text\nthe soup was good\nthe soup\n")
    own = [len(tokenizer(text)["input_ids"]) for text in ("the soup was good", "the soup")]
    assert real_lengths(places, tmp_path / "rows.csv") == ([own], [])
    (run / "config.yaml").unlink()
    assert real_lengths(places, None) == ([], ["rows/s real was not measured: give --rows FILE"])


def test_slips_are_answered(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--model .*gone: there is no such directory"):
        found([tmp_path / "gone"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither a model that kd wrote nor a run"):
        found([tmp_path / "empty"])
    command = [sys.executable, "-m", "kd", "bench", "--model", str(run / "student"), "--threads", "none"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--threads: 'none' is no whole number above 0" in done.stderr
