"""The whole command in processes of its own, as a user runs it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import SMALL, TWO_RANKS, environment, train
from conftest import ROOT

pytestmark = pytest.mark.slow


def run(directory: Path, *lines: str, **more: str) -> subprocess.CompletedProcess[str]:
    return train(directory, *lines, f"hydra.run.dir={directory / 'run'}", **more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    directory = tmp_path_factory.mktemp("demo")
    done = run(directory, *SMALL)
    assert done.returncode == 0, done.stderr
    return directory / "run", done


Finished = tuple[Path, subprocess.CompletedProcess[str]]


def test_the_run_leaves_everything(finished: Finished) -> None:
    directory, done = finished
    for name in (
        "config.yaml", "metrics.csv", "report.json", "report.md", "report.png", "checkpoints",
        "student/model.safetensors", "student/README.md", "student-int8_qat/model.safetensors",
        "student-int8_qat/tokenizer.json",
    ):  # fmt: skip
        assert (directory / name).exists(), name
    assert not list(directory.glob(".*unfinished*"))
    for part in (
        "Teacher: tiny_demo",
        "quantized 16 of 17 layers, skipped 1 (classifier",
        "| student-int8_qat",
        "wandb sync",
    ):
        assert part in done.stdout
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr + done.stdout


def test_the_report(finished: Finished) -> None:
    directory, _ = finished
    report = json.loads((directory / "report.json").read_text())
    assert list(report["models"]) == ["teacher", "student", "student-int8_qat"]
    for figures in report["models"].values():
        assert 0 < figures["latency_ms_p50"] <= figures["latency_ms_p95"]
        assert figures["rows_per_second"] > 0
        assert {"accuracy", "macro_f1", "mcc", "auroc"} == set(figures["test"]) == set(figures["validation"])
    student, quantized = report["models"]["student"], report["models"]["student-int8_qat"]
    assert student["weights_bytes"] == (directory / "student" / "model.safetensors").stat().st_size
    assert quantized["weights_bytes"] <= 0.30 * student["weights_bytes"]
    assert set(report["curves"]) == {"train/loss", "train/loss/hard", "train/loss/soft", "train/loss/patient"}


def test_the_csv_file_has_every_term(finished: Finished) -> None:
    with (finished[0] / "metrics.csv").open() as file:
        header = next(csv.reader(file))
    assert {
        "train/loss/hard", "train/loss/soft", "train/loss/patient", "train/lr", "train/grad_norm", "val/accuracy",
    } <= set(header)  # fmt: skip


def test_checkpoints_hold_the_student_and_its_projections_only(finished: Finished) -> None:
    (checkpoint,) = (finished[0] / "checkpoints").glob("best*.ckpt")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in state} == {"student", "losses"}
    assert state["student.bert.embeddings.word_embeddings.weight"].dtype == torch.float32


def test_stock_transformers_loads_the_float_student(finished: Finished, tmp_path: Path) -> None:
    code = (
        "import sys; from transformers import AutoModelForSequenceClassification as M, AutoTokenizer as T\n"
        "d = sys.argv[1]; m = M.from_pretrained(d); t = T.from_pretrained(d)\n"
        "logits = m(**t('the soup was good', return_tensors='pt')).logits\n"
        "assert 'kd' not in sys.modules; print(m.config.id2label, logits.tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(finished[0] / "student")], capture_output=True, text=True,
        env=environment(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "{0: 'negative', 1: 'positive'}" in done.stdout


def predict(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from kd.cli import main; main()", "predict", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment(cwd), timeout=120)


@pytest.mark.parametrize("name", ["student", "student-int8_qat"])
def test_kd_predict(finished: Finished, tmp_path: Path, name: str) -> None:
    model = str(finished[0] / name)
    done = predict("--model", model, "--json", "the soup was good", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert row["label"] in ("negative", "positive")
    assert sum(row["probabilities"].values()) == pytest.approx(1)
    (tmp_path / "in.csv").write_text("id,review\n1,the soup was good\n2,the waiter was rude\n")
    done = predict("--model", model, "--input", "in.csv", "--column", "review", cwd=tmp_path)
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [row["id"] for row in rows] == ["1", "2"]
    assert float(rows[0]["p_positive"]) == pytest.approx(row["probabilities"]["positive"], abs=1e-4)


def test_kd_predict_answers_slips(finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,review\n1,good\n")
    model = str(finished[0] / "student")
    for arguments, says in (
        (["--model", str(tmp_path), "a text"], "no config.json"),
        (["--model", model], "Give texts, or --input"),
        (["--model", model, "--input", "in.csv"], "has no column 'text', only id, review"),
        (["--model", model, "--input", "gone.csv"], "there is no such file"),
        (["--model", model, "--column", "review", "a text"], "give --input too"),
    ):
        done = predict(*arguments, cwd=tmp_path)
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
        assert says in done.stderr


def leet(*arguments: str, cwd: Path) -> str:
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=cwd).stdout


def test_offline_wandb_runs_read_back(finished: Finished) -> None:
    directory, _ = finished
    found: dict[str, dict[str, Any]] = {}
    for path in (directory / "wandb").glob("offline-run-*"):
        records = [json.loads(line) for line in leet("--json", str(path), cwd=directory).splitlines()]
        started = next(record["run"] for record in records if record["type"] == "run")
        found[started["job_type"]] = {
            "run": started,
            "text": json.dumps(records),
            "summary": json.loads(leet("--summary", "--json", str(path), cwd=directory)),
        }
    assert set(found) == {"teacher", "distil"}
    distil = found["distil"]
    assert sorted(distil["run"]["tags"]) == ["demo", "int8_qat", "pkd", "tiny_demo"]
    config = distil["summary"]["config"]
    assert (config["method"]["patient"]["weight"], config["quant"]["int8_qat"]["scheme"]) == (1, "int8_dynamic_trained")
    for key in ("hard", "soft", "patient"):
        assert f"train/loss/{key}" in distil["text"]
    for key in ("train/lr", "train/grad_norm", "val/accuracy", "report/student-int8_qat/weights_bytes"):
        assert key in distil["text"]
    report = json.loads((directory / "report.json").read_text())
    assert str(report["models"]["student"]["weights_bytes"]) in json.dumps(distil["summary"])


def test_the_second_run_reuses_the_teacher(finished: Finished, tmp_path: Path) -> None:
    cache = finished[0].parent / "cache"
    done = run(tmp_path, *SMALL, "method=logit", "quant=int4_qat", "seed=3", "logger=csv", KD_CACHE=str(cache))
    assert done.returncode == 0, done.stderr
    assert "fine-tuned earlier" in done.stdout
    assert (tmp_path / "run" / "student-int4_qat").is_dir()
    assert not (tmp_path / "run" / "wandb").exists()


def test_two_ranks_from_the_same_command(tmp_path: Path) -> None:
    done = run(tmp_path, *SMALL, *TWO_RANKS, "trainer.max_epochs=1", "logger=csv")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| student-int8_qat") == 2  # a line in each of the two tables
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["about"]["training"].startswith("5 steps")  # 320 rows in batches of 2 x 32


def test_a_distilbert_of_a_bert_token_by_token(tmp_path: Path) -> None:
    done = run(
        tmp_path, *SMALL, "student=distilbert_tiny", "student.overrides.n_layers=1", "+student.overrides.dropout=0.0",
        "method=feature", "trainer.max_steps=4", "report.measure=false", "logger=csv",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Student: distilbert_tiny, 1 layers, 256 wide" in done.stdout
    for name in ("student", "student-int8_qat"):
        answer = predict("--model", str(tmp_path / "run" / name), "--json", "the soup was good", cwd=tmp_path)
        assert answer.returncode == 0, answer.stderr
    config = json.loads((tmp_path / "run" / "student" / "config.json").read_text())
    assert (config["model_type"], config["n_layers"], config["dropout"]) == ("distilbert", 1, 0.0)


def test_the_flagship_architectures_run_without_weights(tmp_path: Path) -> None:
    done = run(
        tmp_path, "teacher=bert_large_wwm", "student=bert_small", "method=pkd", "teacher.weights=random",
        "student.weights=random", "teacher.gate=false", "data=demo", "data.source.scored_rows=50",
        "data.limit=64", "trainer.max_steps=4",
        "report.measure_seconds=0.3", "logger=csv",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "335.1 M parameters" in done.stdout
    assert "Peak memory" in done.stdout
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["about"]["training"].startswith("4 steps")


def test_killed_in_the_middle_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), *SMALL, "trainer.max_epochs=200", "logger=csv"]
    process = subprocess.Popen(
        [*command, f"hydra.run.dir={tmp_path / 'run'}"], cwd=tmp_path, env=environment(tmp_path / "cache"),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        end = time.monotonic() + 120
        while not list((tmp_path / "run").glob("checkpoints/*.ckpt")):
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left <= {".lock", "config.yaml", "metrics.csv", "hparams.yaml", "checkpoints", "teacher"}
    done = predict("--model", str(tmp_path / "run" / "student"), "a text", cwd=tmp_path)
    assert "there is no such directory" in done.stderr


def test_an_error_of_the_users_is_one_paragraph_and_exit_code_1(tmp_path: Path) -> None:
    done = run(
        tmp_path, "data=demo", "student=tiny_demo", "teacher=tiny_demo", "+method.patient.wieght=3", "logger=csv"
    )
    assert done.returncode == 1
    assert "has no argument 'wieght'. Did you mean 'weight'?" in done.stderr
    assert "Traceback" not in done.stderr
