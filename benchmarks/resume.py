"""Kills runs at random moments, resumes them, and compares what they leave, byte by byte, with a run left alone.

    python benchmarks/resume.py                   # 20 kills, about 12 minutes on 2 cores
    python benchmarks/resume.py --kills 5 --ranks 2

Each run has a cache of its own, so a kill may also hit the teacher's fine-tuning, a download's place, or the report.
Prints one line a kill and exits with 1 if any file differs.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SMALL = [
    "experiment=demo", "data.source.rows=1280", "data.source.scored_rows=200", "trainer.max_epochs=3",
    "teacher.fine_tune.epochs=1", "teacher.gate=false", "report.measure=false", "checkpoint.every_seconds=0.5",
    "logger=csv",
]  # fmt: skip
FILES = ("student/model.safetensors", "student-int8_qat/model.safetensors", "metrics.csv", "report.md")


def start(directory: Path, lines: list[str]) -> subprocess.Popen[bytes]:
    run = directory / "run"
    begun = (run / "config.yaml").is_file()
    arguments = [f"resume={run}"] if begun else [*SMALL, *lines, f"hydra.run.dir={run}"]
    environment = os.environ | {"KD_CACHE": str(directory / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    log = (directory / "log").open("ab")
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def finish(directory: Path, lines: list[str]) -> None:
    code = start(directory, lines).wait()
    if code:
        raise SystemExit(f"exit code {code}:\n{(directory / 'log').read_text(encoding='utf-8')[-3000:]}")


def killed(directory: Path, lines: list[str], seconds: float) -> str:
    """Starts a run and kills it, with all its ranks, after so many seconds; returns what was there then."""
    process = start(directory, lines)
    time.sleep(seconds)
    over = process.poll() is not None
    os.killpg(process.pid, signal.SIGKILL) if not over else None
    process.wait()
    run = directory / "run"
    marks = {
        "report": "report.json", "student": "student", "distilling": "checkpoints/last.ckpt", "begun": "config.yaml",
    }  # fmt: skip
    return next((name for name, path in marks.items() if (run / path).exists()), "nothing")


def contents(directory: Path, name: str) -> str | bytes:
    """The bytes of a file, without the time a run took."""
    data = (directory / "run" / name).read_bytes()
    lines = data.decode().splitlines() if name.endswith(".md") else []
    return "\n".join(line for line in lines if not line.startswith(("- training", "- peak"))) if lines else data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    several = ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={arguments.ranks}"]
    lines = several if arguments.ranks > 1 else []
    draw = random.Random(arguments.seed)
    different = 0
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        alone = top / "alone"
        alone.mkdir()
        begin = time.perf_counter()
        finish(alone, lines)
        whole = time.perf_counter() - begin
        print(f"left alone: {whole:.1f} s", flush=True)
        for i in range(arguments.kills):
            directory = top / str(i)
            directory.mkdir()
            moment = draw.uniform(0, whole)
            found = killed(directory, lines, moment)
            finish(directory, lines)
            wrong = [file for file in FILES if contents(directory, file) != contents(alone, file)]
            different += bool(wrong)
            verdict = f"DIFFERENT: {', '.join(wrong)}" if wrong else "equal"
            print(f"{i + 1:3}. killed after {moment:5.1f} s ({found}): {verdict}", flush=True)
    print(f"{arguments.kills - different} of {arguments.kills} equal")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
