"""A run that was stopped and resumed leaves what a run left alone leaves."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import SMALL, TWO_RANKS, environment, stopped, train
from conftest import ROOT
from omegaconf import OmegaConf

from kd.checkpoint import LAST, WholeFiles, check, random_state, read, restore_random_state, steps_done
from kd.command_line import compose
from kd.errors import UserError
from kd.last_state import LastState
from kd.resume import directory_of, settings_key, stored

EVERY_STEP = [*SMALL, "report.measure=false", "checkpoint.every_seconds=0", "logger=csv"]
FILES = ("student/model.safetensors", "student-int8_qat/model.safetensors", "metrics.csv")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped, its cache beside it."""
    directory = tmp_path_factory.mktemp("alone")
    done = train(directory, *EVERY_STEP, f"hydra.run.dir={directory / 'run'}")
    assert done.returncode == 0, done.stderr
    return directory / "run"


def reached(run: Path, step: int) -> bool:
    return steps_done(run) >= step


def resumed(run: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    done = train(run.parent, f"resume={run}", KD_CACHE=str(cache))
    assert done.returncode == 0, done.stderr
    return done


def assert_equal(run: Path, alone: Path) -> None:
    for name in FILES:
        assert (run / name).read_bytes() == (alone / name).read_bytes(), name


@pytest.mark.slow
def test_killed_and_resumed(alone: Path, tmp_path: Path) -> None:
    step = 14  # in the second of 2 epochs with 10 steps each
    run, cache = tmp_path / "run", alone.parent / "cache"
    stopped(
        tmp_path, *EVERY_STEP, f"hydra.run.dir={run}", when=lambda: reached(run, step), signal_number=signal.SIGKILL,
        cache=cache,
    )  # fmt: skip
    assert not (run / "student").exists()
    done = resumed(run, cache)
    assert_equal(run, alone)
    assert int(done.stdout.split("Resuming: ")[1].split()[0]) >= step
    assert "there is nothing to go on with" in resumed(run, cache).stdout  # a finished run stays as it is


KILLED_WHILE_SAVING = """
import os, signal, sys, kd.checkpoint as c
whole, count = os.fsync, 0
def killing(number):
    global count
    count += 1
    if count == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    whole(number)
c.os.fsync = killing
from kd.launch import main
main()
"""


@pytest.mark.slow
def test_killed_while_saving(alone: Path, tmp_path: Path) -> None:
    run, cache = tmp_path / "run", alone.parent / "cache"
    command = [sys.executable, "-c", KILLED_WHILE_SAVING, *EVERY_STEP, f"hydra.run.dir={run}"]
    done = subprocess.run(command, cwd=ROOT, env=environment(cache), capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert {path.name for path in (run / "checkpoints").iterdir()} == {LAST, f".{LAST}.unfinished"}
    assert steps_done(run) == 8
    resumed(run, cache)
    assert_equal(run, alone)


@pytest.mark.slow
def test_sigterm_saves_and_leaves(alone: Path, tmp_path: Path) -> None:
    run, cache = tmp_path / "run", alone.parent / "cache"
    done = stopped(
        tmp_path, *EVERY_STEP, f"hydra.run.dir={run}", when=lambda: reached(run, 4), signal_number=signal.SIGTERM,
        cache=cache,
    )  # fmt: skip
    assert done.returncode == 143
    assert f"To go on: python train.py resume={run}" in done.stderr
    assert "Traceback" not in done.stderr
    resumed(run, cache)
    assert_equal(run, alone)


@pytest.mark.slow
def test_sigterm_with_two_ranks(alone: Path, tmp_path: Path) -> None:
    cache = alone.parent / "cache"
    lines = [*EVERY_STEP, *TWO_RANKS, "trainer.max_epochs=4"]  # of 5 steps each
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train(tmp_path, *lines, f"hydra.run.dir={whole}", KD_CACHE=str(cache)).returncode == 0
    done = stopped(
        tmp_path, *lines, f"hydra.run.dir={run}", when=lambda: reached(run, 6), signal_number=signal.SIGTERM,
        cache=cache,
    )  # fmt: skip
    assert done.returncode == 143, done.stderr
    resumed(run, cache)
    assert_equal(run, whole)


def test_only_what_changes_no_figure_may_change(tmp_path: Path) -> None:
    given = ["experiment=demo", f"paths.output={tmp_path}"]
    OmegaConf.save(compose(given), tmp_path / "config.yaml", resolve=True)
    kept = stored(tmp_path, compose([*given, "debug=true", "seed=0"]), ["experiment", "debug", "seed"])
    assert (kept.debug, kept.seed, kept.method.name) == (True, 0, "pkd")
    for line, says in (
        ("seed=1", "seed is 0 there, 1 here"),
        ("method=hard", "method is pkd there, hard here"),
        ("optimizer.lr=1e-2", "optimizer.lr is 0.001 there, 0.01 here"),
        ("experiment=sst2_minilm_pkd_int8", "experiment: "),
    ):
        with pytest.raises(UserError, match=says):
            stored(tmp_path, compose([*given, line]), [line.partition("=")[0]])


def test_the_key_of_the_settings() -> None:
    def key(*lines: str) -> str:
        return settings_key(compose(["experiment=demo", "paths.output=x", *lines]))

    assert key("debug=true", "logger=csv", "paths.cache=y", "report.measure=false") == key()
    assert len({key(), key("seed=1"), key("trainer.max_epochs=5"), key("method=hard"), key("quant=int8")}) == 5


def test_what_is_no_run(tmp_path: Path) -> None:
    assert directory_of(["seed=1"]) is None
    with pytest.raises(UserError, match=r"there is no config\.yaml"):
        directory_of([f"resume={tmp_path / 'gone'}"])
    (tmp_path / "sweep" / "0-a").mkdir(parents=True)
    (tmp_path / "sweep" / "0-a" / "config.yaml").touch()
    with pytest.raises(UserError, match=r"Below it are the runs 0-a\."):
        directory_of([f"resume={tmp_path / 'sweep'}"])
    run = tmp_path / "sweep" / "0-a"
    assert directory_of([f"resume={run}"]) == run
    with pytest.raises(UserError, match="own directory: leave out elsewhere"):
        directory_of([f"resume={run}", "hydra.run.dir=elsewhere"])


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / LAST
    WholeFiles().save_checkpoint({"kd": {"key": "a", "random": [random_state()]}, "global_step": 3}, path)
    assert read(path)["global_step"] == 3
    check(path, "a", 1)
    with pytest.raises(UserError, match="another configuration"):
        check(path, "b", 1)
    with pytest.raises(UserError, match="saved by 1 processes, this is a run of 2"):
        check(path, "a", 2)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        read(path)


def test_random_states_come_back(tmp_path: Path) -> None:
    WholeFiles().save_checkpoint({"random": random_state()}, tmp_path / LAST)
    first = torch.rand(3)
    restore_random_state(read(tmp_path / LAST)["random"])
    assert torch.equal(torch.rand(3), first)


def test_a_write_that_fails_leaves_the_checkpoint_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / LAST
    WholeFiles().save_checkpoint({"step": 1}, path)

    def full(_number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kd.checkpoint.os.fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        WholeFiles().save_checkpoint({"step": 2}, path)
    assert caught.value.filename == str(path)
    assert [file.name for file in tmp_path.iterdir()] == [LAST]
    assert read(path)["step"] == 1


def test_ranks_with_different_configurations_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = LastState(tmp_path / LAST, 0, "a")
    monkeypatch.setattr("kd.last_state.gathered", lambda value: [value, "b"])
    with pytest.raises(UserError, match="started with different configurations"):
        state.on_fit_start(None, None)  # type: ignore[arg-type]
    monkeypatch.setattr("kd.last_state.gathered", lambda value: [value, "a"])
    state.on_fit_start(None, None)  # type: ignore[arg-type]


def test_a_run_of_an_earlier_kd_is_refused(tmp_path: Path) -> None:
    given = compose(["experiment=demo", f"paths.output={tmp_path}"])
    earlier = OmegaConf.masked_copy(given, [str(key) for key in given if key not in ("cache", "compile")])
    OmegaConf.save(earlier, tmp_path / "config.yaml", resolve=True)
    with pytest.raises(UserError, match="begun by an earlier kd, which had no cache"):
        stored(tmp_path, given, [])
