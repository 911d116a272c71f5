"""Exports in their own runtimes, and the gate that they pass or do not pass."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import architecture, model
from onnx import numpy_helper
from test_quantization import settings

import kd
from kd import artefact, cli, demo, export, models, quantization
from kd.datamodule import TextDataModule
from kd.errors import UserError
from kd.export.directory import note_figures, read_about
from kd.export.exporter import Exported, Exporter
from kd.export.gate import Gate, misses
from kd.export.session import open_session, started
from kd.sources import TextData
from kd.tasks import Classification, FeatureExtraction, MaskedLM, Regression, Task

TEXTS = ["the soup was really good", "i doubt that the chef was rude although the bread was fresh"]
MAX_LENGTH = 32


def with_types(tokenizer: Any) -> Any:
    """As a BERT's tokenizer is: it gives token types too."""
    tokenizer = copy.deepcopy(tokenizer)
    names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
    return tokenizer


def rows_of(data: TextData, tokenizer: Any, task: Task, cache: Path) -> TextDataModule:
    return TextDataModule(task.prepare(data), {"student": tokenizer}, cache, 8, MAX_LENGTH, 64, units=task.units)


def exporter_of(data: TextData, place: Path, task: Task | None = None, **more: Any) -> Exporter:
    """Of a small random student that was saved as a run saves it."""
    task = task or Classification(demo.LABELS)
    tokenizer = models.tokenizer_for(more.get("model_type", "bert"), with_types(data.tokenizer))
    student = model(**more) if isinstance(task, Classification) else random_student(task, data, **more)
    artefact.save_float(place / "student", student, tokenizer, MAX_LENGTH, ("text",), task)
    return Exporter(place / "student", rows_of(data, tokenizer, task, place / "cache"), task)


def random_student(task: Task, data: TextData, **more: Any) -> Any:
    torch.manual_seed(0)
    return models.random_model(architecture(**more), task, data.tokenizer)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def bert(text: TextData, place: Path) -> Exporter:
    return exporter_of(text, place)


@pytest.fixture(scope="module")
def made(bert: Exporter, place: Path) -> Exported:
    """The bert as ONNX."""
    return bert.export(export.stored_target("onnx"), place / "export")


@pytest.fixture
def copied(made: Exported, tmp_path: Path) -> Path:
    return shutil.copytree(made.directory, tmp_path / "onnx")


def inputs_of(directory: Path, texts: list[str]) -> dict[str, np.ndarray[Any, Any]]:
    encoded = artefact.load(directory).tokenizer(texts, padding=True, return_tensors="np")
    return {name: encoded[name].astype(np.int64) for name in encoded}


def test_onnx_gives_the_students_logits(bert: Exporter, made: Exported) -> None:
    assert made.passed, made.reasons
    assert made.figures["agreement"] == 1.0
    assert made.figures["max_difference"] < 1e-5
    assert made.figures["rows"] == 300
    student, exported = bert.source.artefact, kd.load(made.directory)
    assert torch.allclose(exported.logits(TEXTS), student.logits(TEXTS), atol=1e-5)
    assert [row["label"] for row in exported.predict(TEXTS)] == [row["label"] for row in student.predict(TEXTS)]
    opset = {one.domain: one.version for one in onnx.load(made.directory / "model.onnx").opset_import}[""]
    assert opset >= 17
    assert made.weights_bytes == (made.directory / "model.onnx").stat().st_size


def test_tokenizer_labels_and_config_travel(made: Exported) -> None:
    there = {path.name for path in made.directory.iterdir()}
    assert there >= {"model.onnx", "tokenizer.json", "tokenizer_config.json", "config.json", "kd.json", "README.md"}
    assert "model.safetensors" not in there
    about = json.loads((made.directory / "kd.json").read_text())
    assert about["task"]["label_names"] == demo.LABELS
    assert about["max_length"] == MAX_LENGTH
    assert read_about(made.directory)["inputs"] == ["input_ids", "attention_mask", "token_type_ids"]


def run_snippet(directory: Path, text: str) -> str:
    """What the card's Python prints, in a process that kd is hidden from."""
    code = re.search(r"```python\n(.*?)```", (directory / "README.md").read_text(), re.DOTALL)
    assert code
    lines = code[1].replace('text = "a text"', f"text = {text!r}") + (
        "\nimport sys\nassert not {'kd', 'torch', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", lines], cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_cards_snippet_gives_the_same_label(bert: Exporter, made: Exported) -> None:
    assert run_snippet(made.directory, TEXTS[0]) == bert.source.artefact.predict(TEXTS[0])[0]["label"]


def test_a_session_needs_no_torch(made: Exported) -> None:
    code = (
        "import sys, numpy as np; from pathlib import Path; from kd.export.session import open_session, started\n"
        f"session = open_session(Path({str(made.directory)!r}), 1)\n"
        "ids = np.full((2, 5), 7); ones = np.ones_like(ids)\n"
        "print(session({'input_ids': ids, 'attention_mask': ones, 'token_type_ids': 0 * ids}).shape, session.runtime)\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(2, 2) onnxruntime 1.")


def test_int8_is_a_quarter_and_openvino_runs(bert: Exporter, made: Exported, tmp_path: Path) -> None:
    for name in ("onnx_int8", "openvino"):
        target = export.stored_target(name)
        if target.calibration_rows:
            target = replace(target, calibration_rows=32)
        found = bert.export(target, tmp_path)
        assert found.passed, found.reasons
        assert kd.load(found.directory).logits(TEXTS).shape == (2, 2)
        if name == "onnx_int8":
            assert 0 < found.figures["max_difference"] < 0.1
            codes = onnx.load(found.directory / "model.onnx").graph.initializer
            kept = {
                one.name: one.dims for one in codes if one.data_type == onnx.TensorProto.FLOAT and len(one.dims) == 2
            }
            kept = {name: dims for name, dims in kept.items() if min(dims) > 1}  # of scales, a column
            assert [list(dims) for dims in kept.values()] == [[2, 32]], kept  # token types; other embeddings are int8
        else:
            assert found.figures["max_difference"] < 1e-5
            assert run_snippet(found.directory, TEXTS[1]) == bert.source.artefact.predict(TEXTS[1])[0]["label"]


@pytest.mark.parametrize("name", ["onnx_int8", "onnx_int8_static", "onnx_int4"])
def test_embeddings_that_are_the_decoder_too(name: str, text: TextData, tmp_path: Path) -> None:
    """Whatever the gate says of random weights."""
    exporter = exporter_of(text, tmp_path, MaskedLM())
    found = exporter.export(replace(export.stored_target(name), calibration_rows=16), tmp_path / "export")
    path = next(found.directory.glob("model.onnx*"))
    onnx.checker.check_model(onnx.load_model_from_string(path.read_bytes()))
    session = started(found.directory, "onnxruntime", [path.name])
    assert session(inputs_of(tmp_path / "student", TEXTS)).shape[2] == 512
    assert found.figures["mean_difference"] < 0.01


@pytest.mark.parametrize("name", ["int8_static", "int4"])
def test_a_quantized_model_is_exported_on_its_own_grid_and_opened(name: str, text: TextData, tmp_path: Path) -> None:
    task, tokenizer = Classification(demo.LABELS), with_types(text.tokenizer)
    rows = rows_of(text, tokenizer, task, tmp_path / "cache")
    scheme = settings(name, **({"calibration_rows": 32} if name == "int8_static" else {}))
    converted, summary = quantization.convert(model(2, 64), scheme, rows.calibration_batches(32))
    directory = tmp_path / f"student-{name}"
    artefact.save_quantized(directory, converted, tokenizer, MAX_LENGTH, scheme, summary, ("text",), task)
    made = Exporter(directory, rows, task).export(export.stored_target("onnx"), tmp_path / "export")
    assert made.passed, made.reasons
    assert made.name == f"onnx-of-student-{name}"
    assert made.figures["mean_difference"] < 1e-4
    exported, student = kd.load(made.directory), kd.load(directory)
    assert [row["label"] for row in exported.predict(TEXTS)] == [row["label"] for row in student.predict(TEXTS)]
    assert exported.model.config.model_type == "bert"


class Numbers(torch.nn.Module):
    """Answers of a regression: ``scale * x + shift`` of a number that the text gives."""

    def __init__(self, scale: float, shift: float) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, input_ids: torch.Tensor, **_: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.scale * input_ids.double().sin().mean(1, keepdim=True).float() + self.shift)

    def get_output_embeddings(self) -> None: ...


@pytest.mark.parametrize(("scale", "shift", "passes"), [
    (1, 0, True), (1, 1e-5, True), (2, 0, False), (1, 10, False), (2, 10, False), (0, 0, False),
])  # fmt: skip
def test_numbers_are_compared_in_the_units_they_spread_over(
    scale: float, shift: float, passes: bool, text: TextData, tmp_path: Path
) -> None:
    """Pearson's correlation sees neither a shift nor another scale; a limit in the data's units fits no data."""
    task = Regression([])
    rows = rows_of(text, with_types(text.tokenizer), Classification(demo.LABELS), tmp_path / "cache")
    for unit in (1.0, 1e5):
        gate = Gate(Numbers(unit, 0), rows, task, labels=rows.splits["validation"].labels.float())
        figures, _ = gate.figures(Numbers(unit * scale, unit * shift))
        figures["score_difference"] = 0.0  # which sees as little
        assert (not misses(figures, export.stored_target("onnx_int8").limits)) == passes
        assert scale != 1 or shift == 10 or figures["mean_difference"] < 1e-3


def test_a_distilbert_takes_no_token_types(text: TextData, tmp_path: Path) -> None:
    made = exporter_of(text, tmp_path, model_type="distilbert").export(
        export.stored_target("onnx"), tmp_path / "export"
    )
    assert made.passed, made.reasons
    session = open_session(made.directory)
    assert list(session.inputs) == ["input_ids", "attention_mask"]
    given = inputs_of(made.directory, TEXTS)
    assert session(given).shape == (2, 2)
    with pytest.raises(UserError, match="reads input_ids, attention_mask: it does not read token_type_ids"):
        session(given | {"token_type_ids": np.zeros_like(given["input_ids"])})
    with pytest.raises(UserError, match="attention_mask is missing"):
        session({"input_ids": given["input_ids"]})


def test_the_gate_finds_one_wrong_tensor(
    bert: Exporter, made: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(source: Any, target: Any, directory: Path) -> list[str]:
        proto = onnx.load(made.directory / "model.onnx")
        tensors = [one for one in proto.graph.initializer if one.data_type == onnx.TensorProto.FLOAT]
        largest = max(tensors, key=lambda one: len(one.raw_data))
        largest.raw_data = (-numpy_helper.to_array(largest)).tobytes()
        onnx.save(proto, directory / "model.onnx")
        return ["model.onnx"]

    monkeypatch.setattr("kd.export.onnx.write", write)
    found = bert.export(export.stored_target("onnx"), tmp_path)
    assert not found.passed
    assert "mean logit difference" in found.reasons[0]
    assert (found.directory / "model.onnx.failed").is_file()
    assert not (found.directory / "model.onnx").exists()
    for opening in (open_session, kd.load):
        with pytest.raises(UserError, match="did not pass its gate.*model.onnx.failed"):
            opening(found.directory)
    assert "FAILED its gate" in (found.directory / "README.md").read_text()


def test_what_counts_as_a_miss() -> None:
    limits = export.Limits(mean_difference=0.1, agreement=0.99, score=0.5)
    good = {"mean_difference": 0.1, "agreement": 0.99, "score_difference": -0.5}
    assert misses(good, limits) == []
    bad = {"mean_difference": 0.2, "agreement": 0.98, "score_difference": 0.6, "score": 1.0}
    for key in good:
        assert len(misses(good | {key: bad[key]}, limits)) == 1
        assert len(misses(good | {key: float("nan")}, limits)) == 1  # not a number reaches nothing


def test_the_gate_sees_all_rows_in_mixed_batches(bert: Exporter) -> None:
    batches = [batch["rows"].tolist() for batch in bert.gate.batches()]
    assert [len(rows) for rows in batches][:6] == [1, 3, 8, 32, 64, 1]
    assert [row for rows in batches for row in rows] == list(range(300))


def test_files_that_were_cut_off_or_changed(copied: Path) -> None:
    path = copied / "model.onnx"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"model.onnx has \d+ bytes instead of"):
        kd.load(copied)
    path.write_bytes(whole[:-100] + bytes(100))
    with pytest.raises(UserError, match="model.onnx is not what was exported.*sha256"):
        open_session(copied)
    path.write_bytes(whole)
    open_session(copied)
    (copied / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer.json has 2 bytes"):
        open_session(copied)
    (copied / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="tokenizer.json is missing"):
        open_session(copied)


def test_of_a_newer_kd_or_broken(copied: Path) -> None:
    about = json.loads((copied / "export.json").read_text())
    (copied / "export.json").write_text(json.dumps(about | {"format_version": 99}))
    with pytest.raises(UserError, match="format version 99.*newer"):
        kd.load(copied)
    (copied / "export.json").write_text("{")
    with pytest.raises(UserError, match="export.json is broken"):
        kd.load(copied)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"passed": None}, "passed is missing"),
        ({"target": None}, "target is missing"),
        ({"target": {"name": "onnx"}}, "no name and runtime"),
        ({"files": None}, "files is missing"),
        ({"model_files": None}, "model_files is missing"),
        ({"model_files": []}, "no checksum of any model file"),
        ({"model_files": ["other.onnx"]}, "no checksum of .'other.onnx'"),
        ({"model_files": ["../student/model.onnx"]}, "no checksum of"),
        ({"files": {"../x": {"sha256": "", "bytes": 1}}}, "'../x' in files is no plain file name"),
        ({"files": {"a\\b": {"sha256": "", "bytes": 1}}}, "is no plain file name"),
        ({"files": {"model.onnx": 3}}, "no sha256 and bytes of model.onnx"),
    ],
)
def test_an_export_json_that_lacks_something(change: dict[str, Any], said: str, copied: Path) -> None:
    about = json.loads((copied / "export.json").read_text()) | change
    (copied / "export.json").write_text(json.dumps({key: one for key, one in about.items() if one is not None}))
    for opening in (open_session, kd.load):
        with pytest.raises(UserError, match=rf"export.json is broken \(.*{said}"):
            opening(copied)


def test_weights_in_a_file_beside_it(bert: Exporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd.export.onnx.LARGEST", 60_000)  # bytes; the float model has some 130 000
    made = bert.export(export.stored_target("onnx"), tmp_path)
    names = ["model.onnx", "model.onnx.data"]
    assert made.passed
    assert read_about(made.directory)["model_files"] == names
    assert made.weights_bytes == sum((made.directory / name).stat().st_size for name in names)
    beside = made.directory / names[1]
    beside.write_bytes(bytes(beside.stat().st_size))
    with pytest.raises(UserError, match="model.onnx.data is not what was exported"):
        open_session(made.directory)
    small = bert.export(replace(export.stored_target("onnx_int8"), calibration_rows=16), tmp_path)
    assert small.passed
    assert read_about(small.directory)["model_files"] == names[:1]
    assert not (small.directory / names[1]).exists()


def test_figures_that_were_measured_later(copied: Path) -> None:
    note_figures(copied, {"latency_ms_p50": 1.5})
    assert read_about(copied)["figures"]["latency_ms_p50"] == 1.5
    open_session(copied)


def test_runtimes_that_are_not_installed(bert: Exporter, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert export.missing(export.stored_target("onnx")) is None
    find = importlib.util.find_spec
    absent = ("onnxruntime", "nncf")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in absent else find(name, *more))
    assert export.missing(export.stored_target("onnx")) == "export=onnx needs onnxruntime: pip install 'kd[onnx]'"
    with pytest.raises(UserError, match=r"export=openvino_int8 needs nncf: pip install 'kd\[openvino\]'"):
        bert.export(export.stored_target("openvino_int8"), copied)
    with pytest.raises(UserError, match="runs in ONNX Runtime: pip install 'onnxruntime'"):
        open_session(copied)


def test_more_calibration_rows_than_there_are(bert: Exporter, tmp_path: Path) -> None:
    target = export.target("openvino_int8", {"runtime": "openvino", "scheme": "int8_static", "calibration_rows": 65})
    with pytest.raises(UserError, match="^calibration_rows=65: data=demo has 64 training rows"):
        bert.export(target, tmp_path)
    assert not list(tmp_path.iterdir())


def test_groups_that_do_not_divide_a_layer(bert: Exporter, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"group_size=64 does not divide 32, the width of .*query. Set it to 16 or 32"):
        bert.export(replace(export.stored_target("onnx_int4"), group_size=64), tmp_path)
    assert not list(tmp_path.iterdir())


def test_calibration_rows_are_not_padded(bert: Exporter) -> None:
    batches = list(bert.source.calibration(40))
    assert sum(len(batch["input_ids"]) for batch in batches) == 40
    assert all(batch["attention_mask"].all() and list(batch) == list(bert.source.inputs) for batch in batches)


def test_targets_that_are_wrong() -> None:
    with pytest.raises(UserError, match="no export target 'onnx_int9'. Did you mean 'onnx_int8'"):
        export.stored_target("onnx_int9")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"runtime": "onnxruntime", "opsett": 18}, "export.x.opsett: there is no such key. Did you mean 'opset'"),
        ({"runtime": "onnxruntime", "opset": 16}, "it is a whole number, 17 to 23"),
        ({"runtime": "onnx"}, "known are onnxruntime"),
        ({"runtime": "openvino", "scheme": "int8"}, "OpenVINO takes float32"),
        ({"runtime": "openvino", "scheme": "int4", "calibration_rows": 9}, "needs group_size"),
        ({"runtime": "openvino", "scheme": "int4", "group_size": 64}, "needs calibration_rows"),
        ({"runtime": "openvino", "group_size": 64}, "takes no group_size"),
        ({"runtime": "openvino", "limits": {"agrement": 1}}, "limits.agrement: .* Did you mean 'agreement'"),
        ({"runtime": "openvino", "limits": {"agreement": 0.9}}, "looser than the loosest"),
        ({"runtime": "openvino", "carried_limits": {"score": 2.0}}, "looser than the loosest"),
    ]
    for stored, said in wrong:
        with pytest.raises(UserError, match=said):
            export.target("x", stored)


@pytest.mark.parametrize("name", export.names())
def test_every_file_is_a_target(name: str) -> None:
    found = export.stored_target(name)
    assert found.name == name
    first = (Path(__file__).parents[1] / "conf/export" / f"{name}.yaml").read_text().splitlines()[0]
    assert first == f"# @package export.{name}"


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["kd", "export", *arguments])
    cli.main()


def test_the_command_says_what_is_missing(place: Path, made: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    student = str(place / "student")
    for arguments, said in (
        (["--model", student, "--to", "onnx,openvion"], "'openvion'. Did you mean 'openvino'"),
        (["--model", student, "--to", "onnx"], "config.yaml is missing: an export is checked on validation rows"),
        (["--model", student, "--to", "onnx", "--set", "group_size=3"], "none of onnx takes group_size"),
        (["--model", student, "--to", "onnx", "--set", "openvino.opset=18"], "--to has onnx"),
        (["--model", student, "--to", "onnx", "--set", "opest=18"], "Did you mean 'opset'"),
        (["--model", str(made.directory), "--to", "onnx"], "is an export itself"),
        (["--model", str(place / "export"), "--to", "onnx"], "holds exports: name one of them, onnx"),
        (["--model", str(place / "studen"), "--to", "onnx"], "Did you mean 'student'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            command(monkeypatch, *arguments)
        assert said in str(stopped.value)


KINDS: dict[str, tuple[Task, dict[str, Any]]] = {
    "roberta": (Classification(demo.LABELS), {"model_type": "roberta"}),
    "electra": (Classification(demo.LABELS), {"model_type": "electra"}),
    "modernbert": (Classification(demo.LABELS), {"model_type": "modernbert"}),
    "masked": (MaskedLM(), {}),
    "vectors": (FeatureExtraction(), {}),
    "pooled": (Classification(demo.LABELS), {"pooling": "attention"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_family_and_task(kind: str, runtime: str, text: TextData, tmp_path: Path) -> None:
    task, more = KINDS[kind]
    if isinstance(task, FeatureExtraction):
        task.width = 32
    made = exporter_of(text, tmp_path, task, **more).export(export.stored_target(runtime), tmp_path / "export")
    assert made.passed, made.reasons
    sentence = "the [MASK] was good" if kind == "masked" else TEXTS[0]
    student, exported = (kd.load(place).predict(sentence)[0] for place in (tmp_path / "student", made.directory))
    if kind == "vectors":
        assert np.allclose(student["vector"], exported["vector"], atol=1e-4)
    else:
        assert student["label"] == exported["label"]


def test_what_is_added_to_every_answer_is_taken_off_again(bert: Exporter, tmp_path: Path) -> None:
    from kd.export import onnx, onnx_bias

    path = tmp_path / "model.onnx"
    onnx.write_float(bert.source, 18, path)
    onnx_bias.subtract(path, np.array([0.3, -0.2], np.float32))
    batches = list(bert.source.calibration(20))

    def off() -> Any:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return np.concatenate([session.run(["logits"], b)[0] - logits_of(bert.source, b) for b in batches])

    np.testing.assert_allclose(off(), np.tile([-0.3, 0.2], (20, 1)), atol=1e-5)
    onnx_bias.correct(path, bert.source, 20)
    np.testing.assert_allclose(off(), 0, atol=1e-5)


def logits_of(source: Any, batch: dict[str, Any]) -> Any:
    with torch.no_grad():
        return source.module(**{name: torch.as_tensor(ids) for name, ids in batch.items()}).numpy()
