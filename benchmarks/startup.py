"""Start-up: --help, a misspelled name, and a run with everything cached up to its first step, listed by part.

KD_STORE=../shared/store python benchmarks/startup.py
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from kd.noise import silence, silence_transformers

silence()

from kd.table import markdown_table  # noqa: E402
from speed import kd_options, measure, prepare  # noqa: E402
from speed.table import describe, keep, machine  # noqa: E402
from speed.work import Work  # noqa: E402


def answered(words: list[str], times: int) -> list[float]:
    """Seconds of ``python train.py WORDS``, each."""
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        subprocess.run([sys.executable, str(prepare.ROOT / "train.py"), *words], capture_output=True, check=False)
        seconds.append(time.perf_counter() - begin)
    return seconds


def first_steps(work: Work, times: int) -> list[dict[str, dict[str, float]]]:
    """Runs that end at the first step, after a whole one has filled the cache."""
    directory = Path(work.directory)
    cache, overrides = directory / "kd-cache", kd_options.fastest(always_cached=True)
    measure.kd_run(work, [*overrides, "trainer.max_steps=2"], cache)
    found = []
    for i in range(times):
        out = directory / f"startup-{i}.json"
        lines = [*measure.kd_overrides(work, overrides), f"hydra.run.dir={directory / f'run-{i}'}"]
        log = directory / "startup.log"
        measure.start("speed.startup_parts", [str(out), *lines], work, log, KD_CACHE=str(cache))
        for line in log.read_text().splitlines():
            print(line) if line.startswith("LEFT OUT") and i == 0 else None
        found.append(json.loads(out.read_text()))
        print(f"first step after {found[-1]['total']:.1f} s", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("startup.json"))
    arguments = parser.parse_args()
    silence_transformers()
    about, out = machine(), arguments.out.resolve()
    print(describe(about), flush=True)
    words = {"--help": ["--help"], "a typo": ["teacher=bert_larg"]}
    quick = {name: answered(line, arguments.times) for name, line in words.items()}
    with prepare.workplace("minilm_l6", "bert_mini", arguments.rows) as directory:
        work = prepare.make_work(
            directory, "logit", "minilm_l6", "bert_mini", arguments.rows, threads=arguments.threads
        )  # fmt: skip
        runs = first_steps(work, arguments.times)
    parts = {name: [run["parts"].get(name, 0.0) for run in runs] for name in runs[0]["parts"]}
    every = quick | parts | {"from start to first step": [float(run["total"]) for run in runs]}  # type: ignore[arg-type]
    rows = [[n, f"{statistics.median(v):.2f}", f"{min(v):.2f}–{max(v):.2f}"] for n, v in every.items()]
    print("\n" + markdown_table(["", "seconds, median", "of all"], rows) + "\n")
    keep(out, {"machine": about, "seconds": every, "environment": os.environ.get("OMP_NUM_THREADS")})


if __name__ == "__main__":
    main()
