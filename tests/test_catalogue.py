"""What there is by name: every name of conf/, its size, and what is added to the store."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from named_models import put_bert

from kd import cli
from kd.architecture import as_transformers
from kd.command_line import check_command_line, compose, options
from kd.errors import UserError
from kd.library.catalogue import data_sets, model_named, models
from kd.library.known import ARCHIVES, DATA, MODELS
from kd.library.places import places

# Backbones with pooler as published and as counted from transformers' own classes, by hand and once.
REAL = {
    "bert_tiny": 4_385_920, "bert_mini": 11_170_560, "bert_small": 28_763_648, "bert_medium": 41_373_184,
    "bert_base": 109_482_240, "bert_large": 335_141_888, "distilbert": 66_362_880, "bert_multilingual": 177_853_440,
}  # fmt: skip


def kd(monkeypatch: pytest.MonkeyPatch, *line: str) -> None:
    monkeypatch.setattr(sys, "argv", ["kd", *line])
    cli.main()


def test_every_name_of_conf_is_there(tmp_path: Path) -> None:
    found = models(tmp_path)
    for role in ("teacher", "student"):
        assert {model.name for model in found if role in model.roles} == {*options(role)}
    assert {data.name for data in data_sets(tmp_path)} == {*options("data")} - {"files", "hub", "demo"}
    assert {model.name for model in found if model.own_weights} == MODELS.keys()
    assert {data.stored_as for data in data_sets(tmp_path)} == DATA.keys()


def test_parameters_are_the_real_ones(tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModel

    counted = {}
    for model in models(tmp_path):
        if model.name == "layers":
            assert model.parameters is None
            continue
        config = AutoConfig.for_model(**as_transformers(model.architecture))
        with torch.device("meta"):
            built = AutoModel.from_config(config)
        counted[model.name] = sum(weight.numel() for weight in built.parameters())
        assert model.parameters == counted[model.name], model.name
    assert counted.items() >= REAL.items()


def test_the_archives_are_googles(tmp_path: Path) -> None:
    tiny = model_named("bert_tiny", tmp_path)
    assert [place.address for place in places(tiny.wanted(tmp_path), tiny.known)] == [
        "https://huggingface.co/google/bert_uncased_L-2_H-128_A-2",
        f"{ARCHIVES}/2020_02_20/uncased_L-2_H-128_A-2.zip",
    ]
    for model in models(tmp_path):
        own = model.architecture
        if model.known.archive:  # its name says what is in it
            size = "L-{num_hidden_layers}_H-{hidden_size}_A-{num_attention_heads}".format(**own)
            assert model.known.archive.endswith(size)
            assert ("uncased" in model.known.archive or "chinese" in model.known.archive) == model.known.lower_case
        else:
            assert not model.own_weights or own["model_type"] != "bert" or model.name == "minilm_l6"


def test_lists_for_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("KD_STORE", str(tmp_path))
    put_bert(tmp_path / "models" / "bert_tiny", model_named("bert_tiny", tmp_path).architecture)
    kd(monkeypatch, "models", "list", "--json")
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["bert_tiny"]["installed"] == "store"
    assert found["bert_large_wwm"] | {
        "family": "bert", "layers": 24, "width": 1024, "heads": 16, "parameters": 335_141_888, "bytes": 1_340_567_552,
        "licence": "Apache-2.0", "installed": "no", "suits": "teacher",
    } == found["bert_large_wwm"]  # fmt: skip
    kd(monkeypatch, "models", "show", "bert_base")
    out = capsys.readouterr().out
    assert "https://storage.googleapis.com/bert_models/2018_10_18/uncased_L-12_H-768_A-12.zip" in out
    assert "68d45e234eb4a928074dfd868cead0219ab85354cc53d20e772753c6bb9169d3 model.safetensors (hub)" in out
    assert f'AutoTokenizer.from_pretrained("{tmp_path / "models" / "bert_base"}")' in out
    kd(monkeypatch, "models", "compare", "bert_tiny", "electra_small")
    lines = {line.split("|")[1].strip(): line.split("|")[2:4] for line in capsys.readouterr().out.splitlines()}
    assert [cell.strip() for cell in lines["embedding share"]] == ["91 %", "29 %"]
    kd(monkeypatch, "data", "list")
    assert "| banking77  |" in capsys.readouterr().out


@pytest.mark.slow
def test_a_list_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv[1:] = ['models', 'list']; from kd.cli import main; main();"
        "print(sorted({'torch', 'transformers', 'datasets', 'numpy', 'httpx2'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KD_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


def test_ones_own_model_is_a_name(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kd(monkeypatch, "models", "add", "mine", str(put_bert(tmp_path / "own")), "--licence", "MIT")
    assert "mine (bert, 2 layers, 16 wide) is in" in capsys.readouterr().out
    cfg = compose(["teacher=mine", "student=mine", "data=demo"])
    assert cfg.teacher.architecture.vocab_size == 66
    assert cfg.student.fine_tune if "fine_tune" in cfg.student else cfg.teacher.fine_tune.when == "auto"
    check_command_line(["teacher=mine", "student=layers", "student.num_layers=1", "data.max_length=16"], False)
    with pytest.raises(UserError, match="Did you mean 'mine'"):
        check_command_line(["teacher=mien"], False)
    kd(monkeypatch, "models", "list")
    assert "| mine " in capsys.readouterr().out
    assert "### mine" in (store / "MODELS.md").read_text()
    kd(monkeypatch, "models", "remove", "mine")
    with pytest.raises(UserError, match="there is no teacher of that name"):
        check_command_line(["teacher=mine"], False)


def test_ones_own_data_are_a_name(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kd.build import build

    path = tmp_path / "reviews.csv"
    path.write_text("review,stars\n" + "".join(f"a good film {i},good\na bad film {i},bad\n" for i in range(20)))
    kd(monkeypatch, "data", "add", "reviews", str(path))
    path.unlink()
    cfg = compose(["data=reviews"])
    data = build(cfg.data.source)
    assert data.label_names == ["bad", "good"]
    assert len(data.splits["train"]) + len(data.splits["validation"]) == 40
    assert cfg.data.name == "reviews"
    capsys.readouterr()
    kd(monkeypatch, "data", "verify")
    assert capsys.readouterr().out == "reviews: 1 files have the sha256 that was noted; rows: train 40\n"


def said(monkeypatch: pytest.MonkeyPatch, *line: str) -> str:
    with pytest.raises(SystemExit) as caught:
        kd(monkeypatch, *line)
    assert "\n\n" not in str(caught.value.code)
    return str(caught.value.code)


def change(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_slips(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer is one paragraph with what, where and what to do; nothing is left in the store."""
    own = put_bert(tmp_path / "own")
    assert "there is no model of that name. Did you mean 'bert_tiny'?" in said(
        monkeypatch, "models", "show", "bert_tyni"
    )
    assert "there is no data set of that name. Did you mean 'sst2'?" in said(monkeypatch, "data", "download", "sst22")
    assert "has no weights to download" in said(monkeypatch, "models", "download", "tiny_demo")
    assert "is the name of something else" in said(monkeypatch, "models", "add", "bert_tiny", str(own))
    assert "a name has letters" in said(monkeypatch, "models", "add", "../out", str(own))
    assert "has no config.json" in said(monkeypatch, "models", "add", "mine", str(tmp_path))
    assert "is no directory" in said(monkeypatch, "models", "add", "mine", str(tmp_path / "gone"))
    assert "is not in the store" in said(monkeypatch, "models", "remove", "bert_tiny")
    change(own, model_type="t5")
    assert "says model_type=t5: kd knows bert, " in said(monkeypatch, "models", "add", "mine", str(own))
    put_bert(own, words=70)
    answer = said(monkeypatch, "models", "add", "mine", str(own))
    assert f"{own}: the tokenizer has 70 tokens, and vocab_size in config.json is 66" in answer
    put_bert(own)
    (own / "vocab.txt").unlink()
    assert "has no tokenizer: copy tokenizer.json" in said(monkeypatch, "models", "add", "mine", str(own))
    put_bert(own)
    change(own, vocab_size=80)
    answer = said(monkeypatch, "models", "add", "mine", str(own))
    assert "embeddings for 66 tokens, and vocab_size in config.json is 80" in answer
    change(own, vocab_size=66, num_hidden_layers=3)
    assert "has 2 layers, and num_hidden_layers in" in said(monkeypatch, "models", "add", "m", str(own))
    change(own, num_hidden_layers=2, intermediate_size=64)
    assert "numbers in its encoder, and one of the" in said(monkeypatch, "models", "add", "mine", str(own))
    put_bert(own)
    weights = own / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert f"{weights} is broken (it has" in said(monkeypatch, "models", "add", "mine", str(own))
    weights.write_bytes(b"no")
    assert f"{weights} is broken (no header" in said(monkeypatch, "models", "add", "mine", str(own))
    (own / "config.json").write_text("{")
    assert "is broken" in said(monkeypatch, "models", "add", "mine", str(own))
    assert [path for path in store.rglob("*") if path.is_file() and ".locks" not in path.parts] == []


def test_damage_is_found(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kd(monkeypatch, "models", "add", "mine", str(put_bert(tmp_path / "own")))
    words = store / "models" / "mine" / "vocab.txt"
    words.write_text(words.read_text().replace("w7", "w8"))
    monkeypatch.setattr(sys, "argv", ["kd", "models", "verify"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    assert "mine: WRONG: vocab.txt has another sha256 than the one noted. Remove it" in capsys.readouterr().out
    (store / "models" / "mine" / "config.json").write_text("{}")
    assert "mine" not in options("teacher")  # and other names can be used
    assert "config.json says model_type=None" in capsys.readouterr().err
    kd(monkeypatch, "models", "remove", "mine")
    assert not (store / "models" / "mine").exists()


def test_a_store_that_cannot_be_written(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    own = put_bert(tmp_path / "own")
    monkeypatch.setattr("kd.library.addition.locked", refuses)
    answer = said(monkeypatch, "models", "add", "mine", str(own))
    assert answer.startswith(f"The store {store} cannot be written (Read-only file system): set KD_STORE")


def test_a_full_disk(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device", str(store / "models" / ".mine.download"))

    own = put_bert(tmp_path / "own")
    monkeypatch.setattr("kd.library.addition.shutil.copyfile", fails)
    assert "No space left on device. Nothing there looks finished" in said(monkeypatch, "models", "add", "m", str(own))
