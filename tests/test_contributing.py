"""CONTRIBUTING.md's new loss, added to a copy of the project exactly as it stands there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def block(after: str) -> str:
    """The code that follows these words."""
    found = re.search(rf"{re.escape(after)}.*?```\w+\n(.*?)```", TEXT, re.DOTALL)
    assert found is not None, after
    return found[1]


def python(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(project / "src"), "KD_CACHE": str(project / "cache"), "HOME": str(project)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=project, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_loss_is_one_file_one_line_one_yaml_and_one_test(tmp_path: Path) -> None:
    for name in ("src", "conf", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "src/kd/losses/length.py").write_text(block("`src/kd/losses/length.py`"))
    exports = tmp_path / "src/kd/losses/__init__.py"
    exports.write_text(exports.read_text().replace("\n\n__all__", f"\n{block('The line in')}\n__all__", 1))
    (tmp_path / "conf/method/length.yaml").write_text(block("`conf/method/length.yaml`"))
    (tmp_path / "tests/test_length.py").write_text(block("`tests/test_length.py`"))
    done = python(
        tmp_path, "-m", "pytest", "-vv", "-n0", "tests/test_length.py", "tests/test_loss_properties.py", "-k", "length"
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") > 6  # its properties, too
    done = python(
        tmp_path, "train.py", "experiment=demo", "method=length", "data.source.rows=200", "trainer.max_steps=3",
        "teacher.fine_tune.max_steps=3", "teacher.gate=false", "quant=none", "report.measure=false", "logger=csv",
        "method.length.weight_schedule=linear_down", "hydra.run.dir=run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "length: 0.1 * mean over rows of (log |student| - log |teacher|)^2" in done.stdout
    assert "train/loss/length" in (tmp_path / "run/metrics.csv").read_text().splitlines()[0]
