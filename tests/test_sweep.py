"""Sweeps, and jobs on several devices in them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from commands import SMALL, TWO_RANKS, train
from omegaconf import DictConfig, OmegaConf

from kd.command_line import compose
from kd.errors import UserError
from kd.job import full_disk
from kd.launch import check_plugins

NO_DROPOUT = [f"student.overrides.{name}=0.0" for name in ("hidden_dropout_prob", "attention_probs_dropout_prob")]
EQUAL = [
    *SMALL, *NO_DROPOUT, "data.source.rows=330", "trainer.max_epochs=1", "trainer.log_every_n_steps=1", "quant=none",
    "report.measure=false", "logger=csv", "method=hard,logit,pkd,feature", "method.diagnose=true",
]  # fmt: skip


def metrics(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.mark.slow
def test_two_ranks_are_one_rank_with_the_double_batch(tmp_path: Path) -> None:
    """For every method, from a sweep: each job starts a rank of its own with its own configuration.

    330 rows make 11 steps, the last with 10 rows; texts differ in length, so the ranks' batches do, too.
    """
    done = train(tmp_path, "-m", *EQUAL, *TWO_RANKS, "data.batch_size=16", f"hydra.sweep.dir={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr
    done = train(tmp_path, "-m", *EQUAL, "trainer=cpu", "data.batch_size=32", f"hydra.sweep.dir={tmp_path / 'one'}")
    assert done.returncode == 0, done.stderr
    assert "4 runs finished, 0 failed" in done.stdout
    for number, method in enumerate(("hard", "logit", "pkd", "feature")):
        one, two = (next((tmp_path / name).glob(f"{number}-*")) for name in ("one", "two"))
        assert OmegaConf.load(two / "config.yaml").method.name == method
        assert json.loads((two / "report.json").read_text())["about"]["training"].startswith("11 steps")
        first, second = metrics(one), metrics(two)
        assert len(first) == len(second) == 12
        for a, b in zip(first, second, strict=True):
            assert a == pytest.approx(b, rel=1e-5, abs=1e-5)
        terms = {name for name, node in compose([f"method={method}"]).method.items() if isinstance(node, DictConfig)}
        assert {f"train/loss/{name}" for name in terms} <= set(first[0])
        assert {f"train/gradient/{name}" for name in terms} <= set(first[0])
    assert not list((tmp_path / "runs").glob("**/*")), "a rank made a run directory of its own"


@pytest.mark.slow
def test_jobs_that_fail_do_not_stop_the_others(tmp_path: Path) -> None:
    """On one device, in the sweep's own process, and on two, where a rank that fails must not take the sweep along."""
    sweep = tmp_path / "runs" / "mine"
    done = train(
        tmp_path, "-m", *SMALL, "quant=none", "report.measure=false", "trainer.max_epochs=1", "optimizer.lr=1e9,1e-3",
        "trainer=cpu,ddp", "trainer.accelerator=cpu", f"hydra.sweep.dir={sweep}",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Sweep: 2 runs finished, 2 failed" in done.stdout
    assert "Traceback" not in done.stderr
    assert done.stdout.count("fine-tuned in") == 1  # one teacher for all
    runs = sorted(path for path in sweep.iterdir() if path.is_dir())
    assert len(runs) == 4
    for run, trainer in zip(runs[:2], ("cpu", "ddp"), strict=True):
        reason = (run / "error.txt").read_text()
        assert "was not a finite number" in reason
        assert f": optimizer.lr=1000000000.0 trainer={trainer}: The loss term" in done.stdout
        assert not (run / "report.json").exists()
    for run in runs[2:]:
        assert (run / "report.json").is_file()
        assert not (run / "error.txt").exists()
    for run in runs:
        assert OmegaConf.load(run / "config.yaml").logger.wandb.group == "runs/mine"
        assert list((run / "wandb").glob("offline-run-*"))


def test_plugins_that_are_missing_or_search_for_the_worst_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd.launch.is_there", lambda _plugin: False)
    with pytest.raises(UserError, match=r"pip install -e '\.\[optuna\]'"):
        check_plugins(["hydra/sweeper=search"])
    with pytest.raises(UserError, match=r"\[joblib\]"):
        check_plugins(["seed=0,1", "hydra/launcher=joblib"])
    monkeypatch.setattr("kd.launch.is_there", lambda _plugin: True)
    with pytest.raises(UserError, match="minimizes unless told otherwise"):
        check_plugins(["hydra/sweeper=optuna"])
    check_plugins(["hydra/sweeper=optuna", "hydra.sweeper.direction=maximize"])
    check_plugins(["hydra/sweeper=search", "seed=0"])


def test_a_full_disk_is_known_whoever_met_it(tmp_path: Path) -> None:
    text = full_disk(OSError(28, "No space left on device", "a.ckpt"), tmp_path)
    assert text is not None
    assert text.startswith("Writing a.ckpt failed: No space left on device.")
    wrapped = RuntimeError("serializing")
    wrapped.__cause__ = ValueError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert "start again" in str(full_disk(wrapped, tmp_path))
    (tmp_path / "config.yaml").touch()
    assert "go on with: python train.py resume=" in str(full_disk(wrapped, tmp_path))
    assert full_disk(OSError(2, "No such file"), tmp_path) is None
    assert full_disk(ValueError("os error 2"), tmp_path) is None
