"""ExecuTorch: a small student lowered once. Skipped where executorch is not installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import model

from kd import artefact, demo, export
from kd.datamodule import TextDataModule
from kd.errors import UserError
from kd.export import executorch
from kd.export.exporter import Exporter
from kd.export.session import open_session
from kd.sources import TextData
from kd.tasks import Classification

MAX_LENGTH = 32
HERE = importlib.util.find_spec("executorch") is not None
needs_executorch = pytest.mark.skipif(not HERE, reason="executorch is not installed: pip install 'kd[executorch]'")


@pytest.mark.skipif(HERE, reason="executorch is installed")
def test_where_it_is_missing_the_extra_is_named() -> None:
    assert export.missing(export.stored_target("executorch")) == (
        "export=executorch needs executorch: pip install 'kd[executorch]'"
    )


def test_a_quantized_artefact_is_refused(tmp_path: Path) -> None:
    source: Any = SimpleNamespace(quantized=True, directory=tmp_path / "student-int8")
    with pytest.raises(UserError, match=r"takes float students, and .*student-int8 is quantized"):
        executorch.write(source, export.stored_target("executorch"), tmp_path)
    assert not list(tmp_path.iterdir())


@needs_executorch
@pytest.mark.slow
def test_any_batch_and_length_gives_the_models_logits(text: TextData, tmp_path: Path) -> None:
    student, task = model(1), Classification(demo.LABELS)
    artefact.save_float(tmp_path / "student", student, text.tokenizer, MAX_LENGTH, ("text",), task)
    rows = TextDataModule(text, {"student": text.tokenizer}, tmp_path / "cache", 8, MAX_LENGTH, 64)
    made = Exporter(tmp_path / "student", rows, task).export(export.stored_target("executorch"), tmp_path / "export")
    assert made.passed, made.reasons
    session = open_session(made.directory, threads=1)
    for count, tokens in ((1, 2), (executorch.ROWS, 9), (executorch.ROWS + 1, MAX_LENGTH), (20, 5)):
        ids = torch.randint(5, 500, (count, tokens), generator=torch.Generator().manual_seed(count))
        mask = torch.ones_like(ids)
        mask[0, -1] = 0
        with torch.no_grad():
            wanted = student(input_ids=ids, attention_mask=mask).logits.numpy()
        found = session({"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    long = np.ones((1, MAX_LENGTH + 1), np.int64)
    with pytest.raises(UserError, match=f"up to {MAX_LENGTH} tokens a row, and got {MAX_LENGTH + 1}"):
        session({"input_ids": long, "attention_mask": long})
