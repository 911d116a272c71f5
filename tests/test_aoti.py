"""AOTInductor: compiled once, small, and then asked everything."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import model

from kd import artefact, demo, export, quantization
from kd.datamodule import TextDataModule
from kd.errors import UserError
from kd.export import aoti
from kd.export.directory import read_about
from kd.export.exporter import Exporter
from kd.export.session import open_session
from kd.schemes import Settings
from kd.sources import TextData
from kd.tasks import Classification

MAX_LENGTH = 32


def exported(text: TextData, place: Path, quant: str | None = None) -> Path:
    student, task = model(1), Classification(demo.LABELS)
    directory = place / "student"
    if quant is None:
        artefact.save_float(directory, student, text.tokenizer, MAX_LENGTH, ("text",), task)
    else:
        directory = place / f"student-{quant}"
        settings = Settings(quant, "int8_dynamic", qat=False)
        converted, summary = quantization.convert(student, settings)
        artefact.save_quantized(
            directory, converted, text.tokenizer, MAX_LENGTH, settings, summary, ("text",), task
        )  # fmt: skip
    rows = TextDataModule(text, {"student": text.tokenizer}, place / "cache", 8, MAX_LENGTH, 64)
    made = Exporter(directory, rows, task).export(export.stored_target("aoti"), place / "export")
    assert made.passed, made.reasons
    return made.directory


@pytest.fixture(scope="module")
def compiled(text: TextData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(text, tmp_path_factory.mktemp("aoti"))


@pytest.mark.slow
def test_any_batch_and_length_gives_the_models_logits(compiled: Path) -> None:
    float_model = artefact.load(compiled.parents[1] / "student").model
    session = open_session(compiled)
    assert session.runtime.startswith("torch 2.")
    for rows, tokens in ((1, 2), (1, 9), (3, MAX_LENGTH), (70, 5)):
        ids = torch.randint(5, 500, (rows, tokens), generator=torch.Generator().manual_seed(rows))
        mask = torch.ones_like(ids)
        mask[0, -1] = 0
        inputs = {"input_ids": ids, "attention_mask": mask}  # what the tokenizer gives
        with torch.no_grad():
            wanted = float_model(**inputs).logits.numpy()
        found = session({name: one.numpy() for name, one in inputs.items()})
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.slow
def test_what_was_changed_is_never_loaded(
    compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    place = shutil.copytree(compiled, tmp_path / "aoti")
    with open(place / aoti.FILE, "r+b") as file:
        file.seek(5000)
        file.write(b"x")
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda path: pytest.fail("it was loaded"))
    with pytest.raises(UserError, match=r"sha256 differs"):
        open_session(place)


@pytest.mark.slow
def test_a_library_of_another_processor_or_torch_is_not_loaded(
    compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda path: pytest.fail("it was loaded"))
    with monkeypatch.context() as other:
        other.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "NEON")
        with pytest.raises(UserError, match=r"compiled for processor .* and here it is .*NEON: export it again"):
            open_session(compiled)
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    with pytest.raises(UserError, match=r"compiled for torch 2\.13.* here it is 2\.99"):
        open_session(compiled)


@pytest.mark.slow
def test_torchao_kernels_are_compiled_too(text: TextData, tmp_path: Path) -> None:
    place = exported(text, tmp_path, "int8")
    assert place.name == "aoti-of-student-int8"
    about = read_about(place)
    assert about["figures"]["agreement"] >= 0.995


def test_a_package_with_anything_pickled_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / aoti.FILE
    with zipfile.ZipFile(path, "w") as package:
        package.writestr(f"model/data/aotinductor/model/x.{aoti.ABOUT}", json.dumps({"inputs": "input_ids"}))
        package.writestr("model/data/sample_inputs/model.pt", b"\x80\x04.")
    with pytest.raises(UserError, match=r"has model/data/sample_inputs/model\.pt in it"):
        aoti.opened(path)


def test_a_missing_compiler_is_named_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    target = export.stored_target("aoti")
    monkeypatch.setenv("CXX", "no-such-compiler")
    said = export.missing(target)
    assert said is not None
    assert "no no-such-compiler here" in said
    assert "set CXX" in said
