"""What a user may get wrong, the answer, and docs/bad-input.md, which these tests compare with and can write anew.

``KD_WRITE_DOCS=1 pytest tests/test_bad_input.py`` writes the page.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import shutil
import stat
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import SMALL
from conftest import ROOT, STORE
from file_server import Files, serving
from named_models import put_bert

from kd import cli, launch
from kd.library import record
from kd.library.tensor_bundle import TensorBundle
from kd.noise import silence

PAGE = ROOT / "docs" / "bad-input.md"
GOOD = "review,stars\n" + "".join(f"a good long film {i},good\na bad dull film {i},bad\n" for i in range(10))
SCORES = "text,score\n" + "".join(f"a good film {i},{i / 7}\n" for i in range(20))
OWN = "data=files data.train=reviews.csv teacher=minilm_l6 student=layers"
DEMO = "experiment=demo hydra.run.dir=run"  # as the page shows TINY
TINY = " ".join(
    [
        *SMALL,
        "report.measure=false",
        "trainer.max_steps=3",
        "teacher.fine_tune.max_steps=2",
        "logger=csv",
        "checkpoint.every_seconds=0",
    ]
)


@dataclass(frozen=True)
class Case:
    """``files`` are written first; ``prepare`` is given the directory and what the run in it needs."""

    what: str
    line: str
    files: dict[str, str | bytes]
    prepare: Callable[[Path, pytest.MonkeyPatch], None] | None = None
    code: int = 1
    shown: str = ""  # the command as the page shows it, if not ``line``


def own(what: str, text: str | bytes, more: str = "", **files: str | bytes) -> Case:
    line = f"{OWN} {more}".strip()
    others = {f"{name}.csv": content for name, content in files.items()}
    return Case(what, line, {"reviews.csv": text, **others})


def lines(what: str, content: str, more: str = "") -> Case:
    line = f"{OWN} {more}".strip().replace("reviews.csv", "rows.jsonl")
    return Case(what, line, {"rows.jsonl": content})


def several(what: str, labels: str, more: str) -> Case:
    rows = ['{"text": "a good film", "label": [0, 2]}', f'{{"text": "a bad film", "label": {labels}}}']
    return lines(what, "\n".join(rows), more)


def tagged(what: str, tokens: str, tags: str) -> Case:
    rows = ['{"tokens": ["Ann", "slept"], "ner_tags": ["B-PER", "O"]}', f'{{"tokens": {tokens}, "ner_tags": {tags}}}']
    return lines(what, "\n".join(rows))


def full_disk(_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kd.checkpoint.os.fsync", fails)


def read_only(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("kd.check.tempfile.TemporaryFile", refuses)


def finished_run(directory: Path) -> None:
    assert command(f"{TINY} hydra.run.dir=run".split()) == 0
    (directory / "run" / "report.json").unlink()  # as if it had been stopped just before


def other_settings(directory: Path, _: pytest.MonkeyPatch) -> None:
    finished_run(directory)
    config = directory / "run" / "config.yaml"
    text = config.read_text()
    assert text.startswith("seed: 0\n")
    config.write_text(text.replace("seed: 0", "seed: 7", 1))


def broken_teacher(directory: Path, _: pytest.MonkeyPatch) -> None:
    finished_run(directory)
    (kept,) = (directory / "kd-cache" / "teachers").glob("*/model.safetensors")
    kept.write_bytes(b"broken")
    shutil.rmtree(directory / "run")


def unfinished(directory: Path, _: pytest.MonkeyPatch) -> None:
    finished_run(directory)


def without_executorch(_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "executorch" else find(name))


def own_store(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KD_STORE", str(directory / "store"))


def own_model(words: int | None = None, **config: Any) -> Callable[[Path, pytest.MonkeyPatch], None]:
    def prepare(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        own_store(directory, monkeypatch)
        put_bert(directory / "own", words=words, **config)

    return prepare


def cut_weights(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_model()(directory, monkeypatch)
    weights = directory / "own" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def pickled_program(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_model()(directory, monkeypatch)
    (directory / "own" / "model.safetensors").unlink()
    torch.save({"weight": Path("out.txt")}, directory / "own" / "pytorch_model.bin")


def read_only_store(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_model()(directory, monkeypatch)

    def refuses(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("kd.library.addition.locked", refuses)


def full_store(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_model()(directory, monkeypatch)

    def fails(_: object, path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("kd.library.addition.shutil.copyfile", fails)


def misspelled_source(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_store(directory, monkeypatch)
    monkeypatch.setenv("KD_SOURCES", "hub,miror")


def served(directory: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> Files:
    """A server for the test, which is hub and archive and the only source."""
    own_store(directory, monkeypatch)
    files = SERVERS.enter_context(serving())
    for name in ("HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", files.address)
    monkeypatch.setattr("kd.library.places.ARCHIVES", files.address)
    monkeypatch.setenv("KD_SOURCES", source)
    return files


def tiny_on_the_hub(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = served(directory, monkeypatch, "hub")
    files.content["/google/bert_uncased_L-2_H-128_A-2/resolve/main/config.json"] = b"{}"


def no_room(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_on_the_hub(directory, monkeypatch)
    monkeypatch.setattr("kd.library.download.shutil.disk_usage", lambda _: SimpleNamespace(free=5_000_000))


def other_bytes(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_on_the_hub(directory, monkeypatch)
    record.note_checksums(directory / "store", {"google/bert_uncased_L-2_H-128_A-2/config.json": "0" * 64})


def archive(name: str, kind: int = stat.S_IFREG, size: int = 0) -> Callable[[Path, pytest.MonkeyPatch], None]:
    """One with a single entry; ``size`` is what it says to unpack to."""

    def prepare(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        files = served(directory, monkeypatch, "archive")
        entry, packed = zipfile.ZipInfo(name), io.BytesIO()
        entry.external_attr = (kind | 0o644) << 16
        with zipfile.ZipFile(packed, "w") as opened:
            opened.writestr(entry, b"/etc/passwd")
            entry.file_size = size or entry.file_size
        files.content["/2020_02_20/uncased_L-2_H-128_A-2.zip"] = packed.getvalue()

    return prepare


def damaged_checkpoint(directory: Path, _: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "tests" / "fixtures" / "tf_bert", directory / "tf")
    data = directory / "tf" / "bert_model.ckpt.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[TensorBundle(directory / "tf" / "bert_model.ckpt").entries["bert/pooler/dense/bias"].offset] ^= 1
    data.write_bytes(content)


SERVERS = contextlib.ExitStack()  # of one test
CASES = [
    Case("a model of no such name", "teacher=bert_large_wmw", {}, code=2),
    Case("a setting of no such name", "trainer.max_epoch=3", {}, code=2),
    Case("a missing file", "data=files data.train=revews.csv", {"reviews.csv": GOOD}),
    own("a missing column", GOOD, "data.text=reviw"),
    own("empty texts", GOOD + ",good\n ,bad\n"),
    own("one class only", GOOD.replace("bad", "good")),
    own("labels that training never saw", GOOD, "data.validation=dev.csv", dev=GOOD + "so so,meh\nso so la la,meh\n"),
    own("a CSV that is not UTF-8", GOOD.replace("dull", "schön").encode("latin1")),
    own("duplicate column names", GOOD.replace("review,stars", "text,text")),
    own("a file of 0 bytes", ""),
    own("a line that is cut off", GOOD + '"a film,good\n'),
    own("too many fields", GOOD + "good, bad and ugly,good\n"),
    own("numbers instead of classes", SCORES, "data.task=classification"),
    Case("a task of no such name", f"{OWN} data.task=regresion", {"reviews.csv": GOOD}, code=2),
    Case("a task that the data are not for", f"{TINY} data.task=regression", {}, shown=f"{DEMO} data.task=regression"),
    own("a target that is text", SCORES.replace(",0.0", ",none"), "data.task=regression"),
    own("several labels with nothing between", GOOD, "data.task=multilabel"),
    several("labels that are names and numbers", '["joy", 3]', "data.task=multilabel"),
    several("a label number out of range", "[0, 5]", "data.label_names=[anger,fear,joy]"),
    own("a scale with a gap", "text,stars\n" + "a film,1\na film,2\na film,4\na film,5\n" * 5, "data.task=ordinal"),
    own("levels without an order", GOOD, "data.task=ordinal"),
    tagged("more tokens than tags", '["Ann", "saw", "Rome"]', '["B-PER", "O"]'),
    tagged("a tag that is not BIO", '["Ann", "saw", "Rome"]', '["S-PER", "O", "S-LOC"]'),
    own("text without labels", "review\na good long film\n"),
    Case("more layers than the teacher has", "teacher=minilm_l6 student=layers student.num_layers=8", {}),
    Case(
        "a layer map out of range",
        "teacher=minilm_l6 student=layers 'method.patient.layers=[[1,2],[2,9]]'", {},
    ),
    Case(
        "widths that may not be projected",
        "teacher=minilm_l6 student=bert_mini student.weights=random method.patient.project=false", {},
    ),
    Case("a schedule that is none", "experiment=demo method.soft.weight_schedule=linear_dwn", {}, code=2),
    Case("a temperature that falls to 0", "experiment=demo method.soft.temperature_schedule=linear_down", {}, code=2),
    Case("heads that are not as many", "teacher=minilm_l6 student=bert_mini student.weights=random method=minilm", {}),
    Case(
        "heads that no width has",
        "teacher=minilm_l6 student=layers method=minilmv2 method.relations.relation_heads=7", {},
    ),
    Case("correlations of two classes", "teacher=minilm_l6 student=layers method=dist", {}),
    Case("layers that DistilBERT would keep", "teacher=minilm_l6 student=layers student.keep=distilbert", {}),
    Case("a larger student from its teacher", "teacher=minilm_l6 student=bert_base student.weights=teacher", {}),
    Case("a trimmed vocabulary behind masks", "experiment=wikipedia student.vocabulary=trim", {}),
    Case("texts that are too long", "experiment=demo data.max_length=8 data.truncation=error", {}),
    Case("heads that do not divide the width", "student=distilbert_tiny student.overrides.num_attention_heads=3", {}),
    Case("a group size that does not divide a layer", "experiment=demo quant=int4 quant.group_size=64", {}),
    Case("a setting that the named scheme does not take", "experiment=demo quant=int8 quant.group_size=32", {}, code=2),
    Case("worst layers before there is a student", "experiment=demo quant=int8_qat quant.keep_float=auto", {}, code=2),
    Case(
        "layers to keep float that are not there", f"{TINY} 'quant.keep_float=[*.layer.9.*]' hydra.run.dir=run", {},
        shown=f"{DEMO} 'quant.keep_float=[*.layer.9.*]'",
    ),
    Case(
        "fewer rows than calibration asks for",
        f"{TINY} quant=int8_static quant.calibration_rows=5000 hydra.run.dir=run", {},
        shown=f"{DEMO} quant=int8_static quant.calibration_rows=5000",
    ),
    Case("a misspelled export", "experiment=demo export=onxn", {}, code=2),
    Case("an export whose runtime is not installed", "experiment=demo export=executorch", {}, without_executorch),
    Case("an export of what the run does not make", "experiment=demo export=onnx export.onnx.of=[student-int4]", {}),
    Case("a gate that lets anything pass", "experiment=demo export=onnx export.onnx.limits.agreement=0.5", {}),
    Case("a model that is not there (HF_HUB_OFFLINE=1)", "teacher=bert_tiny student=bert_tiny", {}),
    Case("a GPU where there is none", "teacher=minilm_l6 student=layers trainer=gpu", {}),
    Case("a disk that is full", f"{TINY} hydra.run.dir=run", {}, full_disk, 1, DEMO),
    Case("a cache that cannot be written", "experiment=demo", {}, read_only),
    Case("a cached teacher that is broken (it is made anew)", f"{TINY} hydra.run.dir=run", {}, broken_teacher, 0, DEMO),
    Case("resume= with other settings", "resume=run seed=3", {}, unfinished, 2),
    Case("resume= with a checkpoint of another configuration", "resume=run", {}, other_settings),
    Case("resume= of what is no run", "resume=runs/gone", {}, code=2),
    Case("a sweep with a plugin that is missing", "hydra/launcher=submitit_slurm -m", {}, code=2),
    Case("a name that does not exist", "kd models download bert_tyni", {}),
    Case("a source that does not exist", "kd models download bert_tiny", {}, misspelled_source),
    Case("a download without a network (HF_HUB_OFFLINE=1)", "kd models download bert_tiny", {}),
    Case("a directory without config.json", "kd models add mine own", {"own/vocab.txt": "[PAD]\n"}),
    Case("a tokenizer of another size than the embeddings", "kd models add mine own", {}, own_model(words=70)),
    Case("a checkpoint of another family", "kd models add mine own", {}, own_model(model_type="t5")),
    Case("weights of another config.json", "kd models add mine own", {}, own_model(num_hidden_layers=3)),
    Case("weights that are cut off", "kd models add mine own", {}, cut_weights),
    Case("a pickled checkpoint with a program in it", "kd models add mine own", {}, pickled_program),
    Case("a store that cannot be written", "kd models add mine own", {}, read_only_store),
    Case("a store on a full disk", "kd models add mine own", {}, full_store),
    Case("a download that the disk has no room for", "kd models download bert_tiny", {}, no_room),
    Case("a file with other bytes than at first", "kd models download bert_tiny", {}, other_bytes),
    Case("an archive that writes elsewhere", "kd models download bert_tiny", {}, archive("../../out.txt")),
    Case("an archive with a link in it", "kd models download bert_tiny", {}, archive("vocab.txt", stat.S_IFLNK)),
    Case("an archive that unpacks to 100 GB", "kd models download bert_tiny", {}, archive("zeros", size=100 << 30)),
    Case("a TensorFlow checkpoint that was damaged", "kd models convert tf", {}, damaged_checkpoint),
]  # fmt: skip


def command(lines: list[str]) -> int:
    """The command in this process, of train.py or of ``kd``; returns its exit code."""
    silence()
    if lines[0] == "kd":
        return kd_command(lines)
    before, sys.argv = sys.argv, [str(ROOT / "train.py"), *lines]
    try:
        launch.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        sys.argv = before
    return 0


def kd_command(lines: list[str]) -> int:
    before, sys.argv = sys.argv, lines
    try:
        cli.main()
    except SystemExit as ended:  # with the message, as Python shows it
        print(ended.code, file=sys.stderr)
        return 1
    finally:
        sys.argv = before
    return 0


def answer(said: str, errors: str, directory: Path, code: int) -> str:
    """What the user is told, with the places of this machine replaced."""
    from huggingface_hub.constants import HF_HUB_CACHE

    if code:
        lines = [line for line in errors.replace("\r", "\n").splitlines() if "%|" not in line]  # progress bars
        text = "\n".join(lines).strip()
    else:
        text = next(line for line in said.splitlines() if "cannot be read" in line)
    for place, name in ((directory, "DIR"), (STORE, "STORE"), (HF_HUB_CACHE, "HF_CACHE")):
        text = text.replace(str(place), name)
    text = re.sub(r"http://127\.0\.0\.1:\d+", "https://SERVER", text)
    return re.sub(r"-[0-9a-f]{16}\b", "-KEY", text)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KD_STORE", str(STORE))
    monkeypatch.setenv("COLUMNS", "200")
    with SERVERS:
        yield tmp_path


def documented() -> dict[str, str]:
    """The rows of the page, by what they are about."""
    lines = PAGE.read_text(encoding="utf-8").splitlines() if PAGE.exists() else []
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| what ")]
    return {line.split(" | ")[0].removeprefix("| "): line for line in rows}


@pytest.mark.parametrize("case", CASES, ids=[case.what.replace(" ", "-") for case in CASES])
def test_bad_input(
    case: Case, workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if case.line.endswith("trainer=gpu") and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    if "submitit" in case.line and launch.is_there("hydra_submitit_launcher"):
        pytest.skip("the plugin is there")
    for name, content in case.files.items():
        (workplace / name).parent.mkdir(exist_ok=True)
        (workplace / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if case.prepare:
        case.prepare(workplace, monkeypatch)
    capfd.readouterr()
    code = command([part.strip("'") for part in case.line.split()])
    said, errors = capfd.readouterr()
    text = answer(said, errors, workplace, code)
    assert code == case.code, errors
    assert "Traceback" not in errors
    assert text
    assert "\n\n" not in text, "one paragraph"
    cell = text.replace("\n", "<br>").replace("|", "\\|")
    row = f"| {case.what} | `{case.shown or case.line}` | {cell} |"
    if os.environ.get("KD_WRITE_DOCS"):
        rows = documented() | {case.what: row}
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(HEAD + "\n".join(rows[c.what] for c in CASES if c.what in rows) + "\n", encoding="utf-8")
    assert documented()[case.what] == row
    if code:
        left = [path.name for path in workplace.rglob("*") if "unfinished" in path.name or path.name == "student"]
        assert case.prepare in (unfinished, other_settings) or not left


HEAD = """# What can go wrong, and what kd says

One paragraph on standard error, exit code 2 for a command line that is not understood and 1 for everything else, and
nothing half-written. `debug=true` shows the traceback. Written and checked by tests/test_bad_input.py.

| what | python train.py …, or the command itself | the answer |
|---|---|---|
"""


def test_debug_shows_the_traceback(workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (workplace / "reviews.csv").write_text(GOOD)
    assert command(f"{OWN} data.text=reviw debug=true".split()) == 1
    errors = capfd.readouterr().err
    assert "Traceback" in errors
    assert errors.rstrip().endswith("give data.text. Did you mean 'review'?")


def test_the_page_has_every_case() -> None:
    assert list(documented()) == [case.what for case in CASES]
