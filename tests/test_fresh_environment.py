"""The snippets of the model cards, run where kd is not: exports in new environments with their runtime alone."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from commands import SMALL, environment, train

import kd

pytestmark = pytest.mark.slow
TEXTS = ["the soup was good", "a dull , tired film", "never a bad moment"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exported")
    done = train(
        directory, *SMALL, "quant=int8", "quant.embeddings=false", "export=[onnx,openvino]", "report.measure=false",
        "logger=csv", f"hydra.run.dir={directory / 'run'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return directory / "run"


def snippet(directory: Path, text: str) -> str:
    """The card's program with another text."""
    (code,) = re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert '"a text"' in code
    return str(code.replace('"a text"', repr(text)))


def answers(python: Path | str, directory: Path, cwd: Path) -> list[str]:
    """What the snippet prints for each text; it must not find kd."""
    found = []
    for text in TEXTS:
        code = f"{snippet(directory, text)}\nimport sys\nassert 'kd' not in sys.modules, 'kd was imported'\n"
        done = subprocess.run([str(python), "-c", code], cwd=cwd, env=environment(cwd), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(done.stdout.splitlines()[-1])
    return found


def labels(directory: Path) -> list[str]:
    return [row["label"] for row in kd.load(directory).predict(TEXTS)]


@pytest.mark.parametrize(("name", "package"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_an_export_runs_with_its_runtime_alone(run: Path, tmp_path: Path, name: str, package: str) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", package, "tokenizers", "numpy"], check=True)
    there = subprocess.run([python, "-c", "import torch"], capture_output=True, text=True)
    assert "No module named 'torch'" in there.stderr
    directory = run / "export" / name
    assert answers(python, directory, directory) == labels(directory) == labels(run / "student")


@pytest.mark.parametrize("name", ["student", "student-int8"])
def test_transformers_alone_gives_the_same_labels(run: Path, name: str) -> None:
    """The float student, and the int8 one of which only linear layers are quantized."""
    assert answers(sys.executable, run / name, run) == labels(run / name)
