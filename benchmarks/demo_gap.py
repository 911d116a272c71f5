"""Does distillation pay on the demo? `pkd` against `hard` with the best of several learning rates, over seeds.

    python benchmarks/demo_gap.py           # runs 25 short trainings, about 15 minutes on 2 cores
    python benchmarks/demo_gap.py DIR ...   # only reads the report.json files below the directories

Same initialisation, rows and steps. Prints mean and standard deviation of the test accuracy, and the gap in standard
errors of the difference; the learning rate is chosen by validation.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]
COMMON = ["experiment=demo", "quant=none", "report.measure=false", "logger=csv", "seed=0,1,2,3,4"]
RATES = "2.5e-4,5e-4,1e-3,2e-3"


def sweep(directory: Path, *lines: str) -> None:
    command = [sys.executable, str(ROOT / "train.py"), "-m", *COMMON, *lines, f"hydra.sweep.dir={directory}"]
    subprocess.run(command, check=True)


def main(directories: list[Path]) -> None:
    if not directories:
        top = Path(tempfile.mkdtemp(prefix="demo-gap-"))
        directories = [top / "pkd", top / "hard"]
        sweep(directories[0], "method=pkd")
        sweep(directories[1], "method=hard", f"optimizer.lr={RATES}")
    found: dict[tuple[str, float], list[tuple[float, float]]] = defaultdict(list)
    for path in sorted(path for directory in directories for path in directory.rglob("report.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        lr = float(OmegaConf.load(path.parent / "config.yaml").optimizer.lr)
        student = report["models"]["student"]
        pair = student["validation"]["accuracy"], student["test"]["accuracy"]
        found[report["names"]["method"], lr].append(pair)
    best: dict[str, tuple[float, float]] = {}
    for (method, lr), scores in sorted(found.items()):
        validation, test = ([score[i] for score in scores] for i in (0, 1))
        mean, deviation = statistics.fmean(test), statistics.stdev(test)
        chosen = statistics.fmean(validation)
        print(f"{method:5} lr {lr:<8g} {len(test)} seeds  validation {chosen:.4f}  test {mean:.4f} sd {deviation:.4f}")
        if chosen > best.get(method, (0.0, 0.0))[0]:
            best[method] = chosen, lr
    pkd, hard = ([score[1] for score in found[method, best[method][1]]] for method in ("pkd", "hard"))
    gap = statistics.fmean(pkd) - statistics.fmean(hard)
    error = math.sqrt(statistics.variance(pkd) / len(pkd) + statistics.variance(hard) / len(hard))
    print(f"gap {100 * gap:.1f} points, {gap / error:.1f} standard errors (hard at lr {best['hard'][1]:g})")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
