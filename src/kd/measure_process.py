"""The process of one artefact, from the side of those who ask: see measure_worker.py for the other side."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kd
from kd.architecture import family, positions, stored_architecture
from kd.errors import UserError

LAST_LINES = 3  # of what a process that ended had to say


@dataclass(frozen=True)
class Measured:
    """What is measured: a directory that kd.load or kd.export.session.open_session opens."""

    name: str
    directory: Path


@dataclass(frozen=True)
class Inputs:
    """What one model takes: the names of its inputs, the size of its vocabulary, tokens a row."""

    names: tuple[str, ...]
    vocabulary: int
    positions: int


def inputs_of(directory: Path) -> Inputs:
    config = stored_architecture(directory)
    config["model_type"] = config.get("quantization_config", {}).get("model_type", config["model_type"])
    return Inputs(family(config["model_type"]).inputs, config["vocab_size"], positions(config))


class Worker:
    """The process of one artefact. Raises UserError if it ends before its time."""

    def __init__(self, place: Measured, inputs: Inputs, threads: int) -> None:
        self.place = place
        self.asleep = True  # after all its turns so far
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        sources = [str(Path(kd.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        count = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "kd.measure_worker", str(place.directory), str(threads), *inputs.names],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            env=os.environ | count | {"PYTHONPATH": os.pathsep.join(filter(None, sources))},
        )  # fmt: skip

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self.ended()
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, what: str, **more: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"what": what, **more}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self.ended() from None
        return self.answer()

    def turn(self, lengths: Sequence[int], vocabulary: int, untimed: int, seconds: float) -> list[float]:
        """Seconds of each timed call."""
        found = self.ask("turn", lengths=list(lengths), vocabulary=vocabulary, untimed=untimed, seconds=seconds)
        self.asleep &= found["asleep"]
        return list(found["seconds"])

    def ended(self) -> UserError:
        code = self.process.wait()
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors.read().decode(errors="replace").splitlines() if line.strip()]
        how = f"with code {code}" if code >= 0 else f"by signal {-code}{' (out of memory?)' * (code == -9)}"
        said = " | ".join(lines[-LAST_LINES:]) or "nothing"
        return UserError(f"{self.place.name} ({self.place.directory}): its process for measuring ended {how}: {said}")

    def close(self) -> None:
        """Its input ends, and with it the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.kill()
        self.process.wait()
        self.errors.close()
