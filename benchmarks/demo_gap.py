"""Does distillation pay on the demo? `pkd` against `hard` with the best of several learning rates, over seeds.

    python benchmarks/demo_gap.py           # runs 25 short trainings, about 15 minutes on 2 cores
    python benchmarks/demo_gap.py DIR ...   # only compares the runs below the directories

Same initialisation, rows and steps. Prints what `kd compare` says, and the gap in standard errors of the difference;
the learning rate is chosen by validation.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from kd.compare import compare, name_of
from kd.comparison import compared, gap
from kd.found import find

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
    print(compare(directories, sort="validation"))
    (one,) = compared(find(directories)[0])
    pkd, hard = (
        max((row for row in one.rows if row.model == "student" and row.label["method"] == method),
            key=lambda row: row.mean("validation"))
        for method in ("pkd", "hard")
    )  # fmt: skip
    difference, error = gap(pkd.values["test"], hard.values["test"])
    print(
        f"\nBest by validation, {name_of(pkd, hard)} against {name_of(hard, pkd)}: on test a gap of "
        f"{100 * difference:.1f} points, {difference / error:.1f} standard errors"
    )


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
