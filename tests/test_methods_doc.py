"""docs/methods.md: what each file of conf/method/ computes, as the terms describe themselves.

``KD_WRITE_DOCS=1 pytest tests/test_methods_doc.py`` writes it anew.
"""

from __future__ import annotations

import os
import re

import pytest
from conftest import ROOT

from kd.build import build_losses
from kd.command_line import compose, conf_dir, options
from kd.tasks import Classification, FeatureExtraction, Task

PAGE = ROOT / "docs" / "methods.md"
BEGIN, END = "<!-- begin: written by tests/test_methods_doc.py -->", "<!-- end -->"


def first_words(method: str) -> str:
    """The comment at the head of its file."""
    lines = (conf_dir() / "method" / f"{method}.yaml").read_text(encoding="utf-8").splitlines()
    comment = [line.removeprefix("# ") for line in lines[: lines.index(f"name: {method}")]]
    return " ".join(comment)


def formulas(method: str) -> dict[str, str]:
    """Of three layers of MiniLM-L6, for a task of three classes."""
    task: Task = FeatureExtraction() if method == "embed" else Classification(["a", "b", "c"])
    cfg = compose(["teacher=minilm_l6", "student=layers", "data=banking77", f"method={method}"])
    return {name: loss.described() for name, loss in build_losses(cfg, task).items()}


def written() -> str:
    parts, base = [], formulas("logit")
    for method in options("method"):
        found = formulas(method)
        alike = [name for name, text in found.items() if method != "logit" and base.get(name) == text]
        lines = [f"- {', '.join(f'`{name}`' for name in alike)}: as in `logit`"] if alike else []
        terms = "\n".join(lines + [f"- `{name}`: {text}" for name, text in found.items() if name not in alike])
        parts.append(f"**`{method}`** {first_words(method)}\n\n{terms}\n")
    return f"{BEGIN}\n\n" + "\n".join(parts) + f"\n{END}"


def test_the_page_says_what_every_method_computes() -> None:
    page = PAGE.read_text(encoding="utf-8")
    there = re.search(rf"{BEGIN}.*{END}", page, re.DOTALL)
    assert there is not None
    if os.environ.get("KD_WRITE_DOCS"):
        PAGE.write_text(page.replace(there[0], written()), encoding="utf-8")
        pytest.skip("written anew")
    assert there[0] == written()
