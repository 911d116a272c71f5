"""train.py in processes of its own, for the slow tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from conftest import ROOT

SMALL = [
    "experiment=demo",
    "data.source.rows=320",
    "data.source.scored_rows=100",
    "trainer.max_epochs=2",
    "teacher.fine_tune.epochs=1",
    "teacher.gate=false",
    "report.measure_seconds=0.3",
    "trainer.precision=32-true",
]
TWO_RANKS = ["trainer=ddp", "trainer.accelerator=cpu"]


def environment(cache: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "KD_", "PYTEST"))}
    return kept | {"KD_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", **more}


def train(cwd: Path, *lines: str, program: str = "train.py", **more: str) -> subprocess.CompletedProcess[str]:
    """The finished command, its cache in ``cwd/cache``."""
    command = [sys.executable, str(ROOT / program), *lines]
    env = environment(cwd / "cache", **more)
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=300)


def stopped(
    cwd: Path, *lines: str, when: Callable[[], bool], signal_number: int, cache: Path
) -> subprocess.CompletedProcess[str]:
    """A command that is sent a signal as soon as ``when`` holds."""
    command = [sys.executable, str(ROOT / "train.py"), *lines]
    process = subprocess.Popen(
        command, cwd=cwd, env=environment(cache), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 120
    try:
        while not when():
            assert process.poll() is None, "it ended before it could be stopped"
            assert time.monotonic() < end
            time.sleep(0.005)
        process.send_signal(signal_number)
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    return subprocess.CompletedProcess(command, process.returncode, out, errors)
