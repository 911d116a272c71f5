"""kd compare over reports made up here; every expected number is worked out by hand."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from omegaconf import OmegaConf

from kd.compare import compare
from kd.comparison import compared, gap
from kd.errors import UserError
from kd.found import find

BYTES = {"teacher": 4_000_000, "student": 2_000_000, "student-int8": 500_000}
SOFT = {"_target_": "kd.losses.SoftTargetLoss", "weight": 0.5, "temperature": 4.0}
METHODS: dict[str, dict[str, Any]] = {
    "hard": {"hard": {"_target_": "kd.losses.HardLabelLoss", "weight": 1.0}},
    "logit": {"hard": {"_target_": "kd.losses.HardLabelLoss", "weight": 0.5}, "soft": SOFT},
}


def made(
    directory: Path, test: float | None = 0.8, seed: int = 0, method: str = "hard", finished: bool = True,
    latency: float | None = 1.0, teacher: float = 0.9, **settings: Any,
) -> Path:  # fmt: skip
    """A run. The student scores ``test``, its int8 version 0.01 less; validation is 0.1 above test."""
    names = {"data": "demo", "teacher": "tiny_demo", "student": "tiny_demo", "quant": "int8"}
    config = OmegaConf.create({"seed": seed, "debug": False, **{key: {"name": name} for key, name in names.items()}})
    config.merge_with({"method": {"name": method, **METHODS[method]}, "optimizer": {"lr": 0.001}})
    config.merge_with({"paths": {"output": str(directory)}, "logger": {"csv": True}})
    for key, value in settings.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    directory.mkdir(parents=True)
    OmegaConf.save(config, directory / "config.yaml")
    if not finished:
        return directory
    models: dict[str, Any] = {}
    for name, score in (("teacher", teacher), ("student", test or 0.8), ("student-int8", (test or 0.8) - 0.01)):
        figures: dict[str, Any] = {"validation": {"accuracy": score + 0.1}, "validation_retention": score / teacher}
        figures |= {"validation_agreement": 0.5, "parameters": 1_000_000, "weights_bytes": BYTES[name]}
        if test is not None:
            figures |= {"test": {"accuracy": score}, "test_retention": score / teacher, "test_agreement": 0.75}
        if latency is not None:
            figures |= {"latency_ms_p50": latency, "latency_ms_p95": 2 * latency, "rows_per_second": 1000 / latency}
        models[name] = figures
    report = {"select": "accuracy", "models": models, "teacher_beats_chance": True, "about": {"machine": "one"}}
    (directory / "report.json").write_text(json.dumps(report))
    return directory


def cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("| -")]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """`logit` 0.80, 0.82, 0.84: mean 0.82, sd 0.02; `hard` 0.78, 0.80: mean 0.79, sd sqrt(0.0002)."""
    for seed, test in enumerate((0.80, 0.82, 0.84)):
        made(tmp_path / "sweep" / f"logit-{seed}", test, seed, "logit", latency=1.0 + seed)
    for seed, test in enumerate((0.78, 0.80)):
        made(tmp_path / "sweep" / f"hard-{seed}", test, seed, logger__csv=bool(seed), debug=bool(seed),
             report__measure=bool(seed), teacher__gate=bool(seed), data__source__cache=str(seed))  # fmt: skip
    return tmp_path / "sweep"


def test_the_table(sweep: Path) -> None:
    text = compare([sweep])
    header, *rows = cells(text)
    assert header == [
        "method", "model", "n", "validation", "test", "retention", "agreement", "weights", "p50 1x32", "rows/s 32x64",
    ]  # fmt: skip
    assert [row[:3] for row in rows] == [
        ["–", "teacher", "1"], ["logit", "student", "3"], ["logit", "student-int8", "3"], ["hard", "student", "2"],
        ["hard", "student-int8", "2"],
    ]  # fmt: skip
    assert rows[1][3:9] == [
        "0.9200 ± 0.0200", "0.8200 ± 0.0200", "91.1 ± 2.2 %", "75.0 ± 0.0 %", "2.00 MB", "2.00 ± 1.00 ms"
    ]  # fmt: skip
    assert rows[3][4] == "0.7900 ± 0.0141"
    assert rows[0][4] == "0.9000"  # one teacher in five runs: no deviation
    assert rows[0][8] == "1.60 ± 0.89 ms"  # 1, 2, 3, 1, 1: squares of the differences 0.36, 0.16, 1.96, 0.36, 0.36
    assert text.startswith("5 runs in 2 groups: data=demo teacher=tiny_demo student=tiny_demo quant=int8 (accuracy)\n")
    assert len({len(line) for line in text.splitlines() if line.startswith("|")}) == 1


def test_the_gap_in_standard_errors(sweep: Path) -> None:
    assert gap([0.80, 0.82, 0.84], [0.78, 0.80]) == pytest.approx((0.03, math.sqrt(0.0004 / 3 + 0.0002 / 2)))
    text = compare([sweep])  # 0.03 / 0.015275 = 1.96
    assert "Best by test accuracy: method=logit, student, 3.00 points before method=hard, student, 2.0 standard" in text
    assert "2.0 standard errors of the difference; with 2 seeds the error itself is rough." in text
    made(sweep / "hard-2", 0.82, 2)  # hard: mean 0.80, sd 0.02; 0.02 / sqrt(2 * 0.0004 / 3) = 1.22
    text = compare([sweep])
    assert (
        "2.00 points before method=hard, student, 1.2 standard errors of the difference: within noise; with 3" in text
    )


def test_one_seed_has_no_error_bars(tmp_path: Path) -> None:
    made(tmp_path / "a", 0.8)
    assert "One seed: no error bars" in compare([tmp_path])
    made(tmp_path / "b", 0.7, method="logit")
    text = compare([tmp_path])
    assert "10.00 points before method=logit, student. One seed: no error bars; differences may be noise." in text
    assert "±" not in "".join(cell for row in cells(text) if row[1] != "teacher" for cell in row)
    made(tmp_path / "c", 0.8, 1)
    assert "One of them has one seed" in compare([tmp_path])
    made(tmp_path / "d", 0.7, 1, method="logit")
    assert "their seeds do not differ at all" in compare([tmp_path])


def test_what_differs_is_in_the_label_and_what_goes_with_a_name_is_not(tmp_path: Path) -> None:
    made(tmp_path / "a")
    made(tmp_path / "b", method="logit")
    assert cells(compare([tmp_path]))[0][:2] == ["method", "model"]
    made(tmp_path / "c", optimizer__lr=5e-5, data__num_workers=3, trainer__log_every_n_steps=1)
    made(tmp_path / "d", method="logit", method__soft__temperature=2.0)
    rows = cells(compare([tmp_path]))
    assert rows[0][:4] == ["method", "optimizer.lr", "method.soft.temperature", "model"]
    assert sorted(row[:3] for row in rows if row[3] == "student") == [
        ["hard", "0.001", "–"], ["hard", "5e-05", "–"], ["logit", "0.001", "2"], ["logit", "0.001", "4"]
    ]  # fmt: skip


def test_a_setting_changed_by_hand_shows_though_no_other_group_has_it(tmp_path: Path) -> None:
    made(tmp_path / "a")
    made(tmp_path / "b", method="logit", method__soft__temperature=2.0)
    assert cells(compare([tmp_path]))[0][:3] == ["method", "method.soft.temperature", "model"]


def test_a_group_without_a_setting_of_the_others_has_a_name_all_the_same(tmp_path: Path) -> None:
    made(tmp_path / "a", 0.7)
    made(tmp_path / "b", 0.8, schedule__name="linear")
    text = compare([tmp_path])
    assert "schedule.name=linear, student, 10.00 points before schedule.name=–, student" in text
    assert cells(text)[0][0] == "schedule.name"


def test_a_teacher_has_a_row_for_each_that_there_is(tmp_path: Path) -> None:
    made(tmp_path / "a")
    made(tmp_path / "b", method="logit")
    made(tmp_path / "c", 0.7, method="logit", teacher=0.95, teacher__name="minilm_l6")
    said = "teacher=tiny_demo, method=hard, student, 0.00 points before teacher=tiny_demo, method=logit, student."
    assert said in compare([tmp_path])
    rows = [row[:3] for row in cells(compare([tmp_path])) if row[2] == "teacher"]
    assert rows == [["minilm_l6", "logit", "teacher"], ["tiny_demo", "–", "teacher"]]


def test_teachers_of_one_group_that_score_differently_are_averaged(tmp_path: Path) -> None:
    made(tmp_path / "a", teacher=0.90)
    made(tmp_path / "b", seed=1, teacher=0.92)
    made(tmp_path / "c", seed=2, teacher=0.92)
    (row,) = [row for row in cells(compare([tmp_path])) if row[0] == "teacher"]
    assert (row[1], row[3]) == ("2", "0.9100 ± 0.0141")  # two models, however many runs


def test_the_newest_run_of_a_seed_counts(tmp_path: Path) -> None:
    made(tmp_path / "a", 0.9)
    made(tmp_path / "b", 0.7)
    made(tmp_path / "c", 0.8, 1)
    os.utime(tmp_path / "b" / "report.json", (1, 1))
    text = compare([tmp_path, tmp_path / "b", tmp_path / "c" / "report.json"])  # named twice is found once
    row = next(row for row in cells(text) if row[0] == "student")
    assert (row[1], row[3]) == ("2", "0.8500 ± 0.0707")
    assert f"Not counted: {tmp_path / 'b'}, repeated with the same settings and seed by {tmp_path / 'a'}." in text
    assert "2 runs of one group, seed=0,1 each" in text


def test_runs_without_a_report_are_named(sweep: Path) -> None:
    made(sweep / "stopped", finished=False)
    made(sweep / "logit-0" / "wandb" / "files", finished=False)  # W&B's copy of the same config.yaml
    made(sweep / ".hidden", finished=False)
    (sweep / "not-a-run").mkdir()
    (sweep / "not-a-run" / "config.yaml").write_text("model: 3\n")
    (sweep / "stopped" / "error.txt").write_text("optimizer.lr=1e9: the loss\nmore")
    assert compare([sweep]).endswith(
        "\n\n1 run without a report (failed, stopped or still running):\n"
        f"  {sweep / 'stopped'}: optimizer.lr=1e9: the loss"
    )
    with pytest.raises(UserError, match=r"No report\.json below .*1 run without a report"):
        compare([sweep / "stopped"])


def test_sorting(sweep: Path) -> None:
    def order(column: str) -> list[str]:
        return [" ".join(row[:2]) for row in cells(compare([sweep], sort=column))[1:]]

    assert order("p50") == ["hard student", "hard student-int8", "– teacher", "logit student", "logit student-int8"]
    assert order("weights") == ["logit student-int8", "hard student-int8", "logit student", "hard student", "– teacher"]
    assert order("rows")[0] == "hard student"
    assert order("method") == ["hard student", "hard student-int8", "logit student", "logit student-int8", "– teacher"]
    with pytest.raises(UserError, match=r"--sort tset: no such column. Did you mean 'test'\? Columns: method, model"):
        compare([sweep], sort="tset")
    with pytest.raises(UserError, match="retention, rows/s 32x64 all begin so"):
        compare([sweep], sort="r")


def test_without_test_labels_validation_counts_and_nothing_measured_has_no_column(tmp_path: Path) -> None:
    made(tmp_path / "a", None, latency=None)
    text = compare([tmp_path])
    assert cells(text)[0] == ["model", "n", "validation", "retention", "agreement", "weights"]
    assert [row[2] for row in cells(text)[1:]] == ["1.0000", "0.9000", "0.8900"]
    assert "retention and agreement in % of the teacher, on validation" in text


def test_a_figure_that_some_runs_lack_says_so(tmp_path: Path) -> None:
    made(tmp_path / "a", latency=None)
    made(tmp_path / "b", seed=1, latency=3.0)
    row = next(row for row in cells(compare([tmp_path])) if row[0] == "student")
    assert row[7] == "3.00 ms (of 1)"


def test_several_data_sets_have_a_table_each(tmp_path: Path) -> None:
    made(tmp_path / "a")
    made(tmp_path / "b", data__name="sst2")
    text = compare([tmp_path], out=tmp_path / "out")
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## demo, accuracy", "## sst2, accuracy"]
    assert [row[0] for row in cells(text)].count("model") == 2
    with (tmp_path / "out" / "compare.csv").open() as file:
        assert [row["data"] for row in csv.DictReader(file)] == ["demo"] * 3 + ["sst2"] * 3


def test_the_files(sweep: Path, tmp_path: Path) -> None:
    text = compare([sweep], out=tmp_path / "new" / "out")
    written = {path.name: path for path in (tmp_path / "new" / "out").iterdir()}
    assert set(written) == {"compare.md", "compare.csv", "compare.png"}
    assert text in written["compare.md"].read_text()
    assert written["compare.png"].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert written["compare.png"].stat().st_size > 10_000
    with written["compare.csv"].open() as file:
        rows = {(row["method"], row["model"]): row for row in csv.DictReader(file)}
    row = rows["logit", "student"]
    assert (row["seeds"], row["n"], row["teacher"], row["metric"]) == ("0 1 2", "3", "tiny_demo", "accuracy")
    assert float(row["test_mean"]) == pytest.approx(0.82, abs=1e-12)
    assert float(row["test_std"]) == pytest.approx(0.02, abs=1e-12)
    assert float(row["retention_%_mean"]) == pytest.approx(82 / 0.9, abs=1e-12)
    assert (row["test_n"], row["weights_MB_mean"], row["p95_1x32_ms_mean"]) == ("3", "2.0", "4.0")
    assert rows["", "teacher"]["test_std"] == ""
    assert (rows["", "teacher"]["test_n"], rows["", "teacher"]["p50_1x32_ms_n"]) == ("1", "5")


def test_the_picture_shows_every_group_and_model(sweep: Path, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    from kd import comparison_picture

    runs, _ = find([sweep])
    part = Figure()
    comparison_picture.panels(part, compared(runs)[0])
    legends = [[text.get_text() for text in legend.get_texts()] for legend in part.legends]
    assert sorted(legends[0]) == ["method=hard", "method=logit"]
    assert legends[1] == ["teacher", "student", "student-int8"]
    drawn = [
        {tuple(np.round(np.asarray(line.get_xydata())[0], 6).tolist()) for line in axes.lines} for axes in part.axes
    ]
    assert drawn[0] >= {(4.0, 0.9), (2.0, 0.82), (0.5, 0.81), (2.0, 0.79), (0.5, 0.78)}
    assert drawn[1] >= {(2.0, 0.82), (1.0, 0.79)}


def test_versions_machines_and_guessing_teachers_are_said(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        path = made(tmp_path / name, seed=seed) / "report.json"
        report = json.loads(path.read_text()) | {"teacher_beats_chance": seed == 0}
        path.write_text(json.dumps(report | {"about": {"machine": f"cpu {seed}", "kd": "0.1.0"}}))
    text = compare([tmp_path])
    assert "machine: cpu 0; cpu 1: timings are not comparable." in text
    assert f"retention and agreement say nothing, in {tmp_path / 'b'}." in text
    assert "kd:" not in text


@pytest.mark.parametrize(
    ("content", "says"),
    [("{", "Expecting property name"), ("[]", "lacks what a report of kd has"), ('{"select": "x"}', "'models'")],
)
def test_what_is_no_report_is_named(tmp_path: Path, content: str, says: str) -> None:
    made(tmp_path / "good")
    broken = made(tmp_path / "broken", seed=1) / "report.json"
    broken.write_text(content)
    with pytest.raises(UserError, match=says) as error:
        compare([tmp_path])
    assert str(broken) in str(error.value)
    assert "good" not in str(error.value)
    assert "\n" not in str(error.value)


def test_slips_are_answered(tmp_path: Path) -> None:
    (made(tmp_path / "a") / "config.yaml").unlink()
    with pytest.raises(UserError, match="no config.yaml beside it"):
        compare([tmp_path])
    with pytest.raises(UserError, match="no such directory"):
        compare([tmp_path / "gone"])
    with pytest.raises(UserError, match=r"No report\.json below"):
        compare([ROOT / "conf"])  # its config.yaml is no run's
    made(tmp_path / "good" / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out .*file: .*File exists"):
        compare([tmp_path / "good"], out=tmp_path / "file")


def test_the_command_imports_no_torch(sweep: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from kd.cli import main; main()\n"
        "print([n for n in ('torch', 'transformers', 'lightning', 'pandas', 'matplotlib') if n in sys.modules])"
    )
    command = [sys.executable, "-c", code, "compare", str(sweep), "--sort", "test"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.startswith("5 runs in 2 groups")
    assert done.stdout.endswith("\n[]\n")
    assert not list(tmp_path.glob("compare*"))
    command[-3:] = [str(tmp_path / "gone")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "no such directory" in done.stderr


def test_less_may_be_better(tmp_path: Path) -> None:
    for name, seed, perplexity in (("a", 0, 30.0), ("a", 1, 32.0), ("b", 0, 20.0), ("b", 1, 21.0)):
        directory = made(tmp_path / f"{name}{seed}", seed=seed, optimizer__lr=0.1 if name == "a" else 0.2)
        report = json.loads((directory / "report.json").read_text())
        for figures in report["models"].values():
            del figures["test"]
            figures["validation"] = {"perplexity": perplexity}
        report |= {"select": "perplexity", "higher_is_better": False}
        (directory / "report.json").write_text(json.dumps(report))
    text = compare([tmp_path])
    assert [row[0] for row in cells(text)[1:] if row[1] == "student"] == ["0.2", "0.1"]
    assert "optimizer.lr=0.2, student, 10.5000 before optimizer.lr=0.1, student" in " ".join(text.split())
