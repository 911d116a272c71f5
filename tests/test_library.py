"""Models and data by name, from a server on loopback into a store."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from file_server import Files, serving
from named_models import SMALL, bert_shapes, named, put_bert

from kd import cli
from kd.errors import UserError
from kd.library import download, installation, places
from kd.library.installation import install, remove
from kd.library.known import Known
from kd.library.record import CHECKSUMS
from kd.store import SOURCE, Wanted, fetch, file_hash, find

TF = Path(__file__).parent / "fixtures" / "tf_bert"
HUB_ID = "google/bert_uncased_L-2_H-128_A-2"
HUB = f"/{HUB_ID}/resolve/main"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bert_tiny as the hub has it, of its real size."""
    directory = tmp_path_factory.mktemp("tiny")
    return put_bert(directory, named("bert_tiny", directory).architecture)


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    """A server that is the hub, and Google's archives; nothing else is asked."""
    monkeypatch.setattr(download, "BACK_OFF", 0.001)
    for name in ("HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "KD_MIRROR", "KD_SOURCES"):
        monkeypatch.delenv(name, raising=False)
    with serving() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.address)
        monkeypatch.setattr(places, "ARCHIVES", f"{found.address}/bert_models")
        yield found


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KD_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


def small(monkeypatch: pytest.MonkeyPatch, store: Path, archive: str | None = None, **pins: Any) -> Wanted:
    """A name with the small architecture behind it."""
    known = Known("MIT", archive, True, **pins)
    monkeypatch.setattr(installation, "facts", lambda _: (known, SMALL))
    return Wanted("model", "small", "me/small", store)


def kd(monkeypatch: pytest.MonkeyPatch, *line: str) -> None:
    monkeypatch.setattr(sys, "argv", ["kd", *line])
    cli.main()


def left(store: Path) -> list[str]:
    """Everything in the store, but for locks."""
    return sorted(path.relative_to(store).as_posix() for path in store.rglob("*") if ".locks" not in path.parts)


def test_from_the_hub_and_never_again(
    files: Files, store: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files.put(HUB, tiny)
    kd(monkeypatch, "models", "download", "bert_tiny")
    place = store / "models" / "bert_tiny"
    assert capsys.readouterr().out.endswith(f"bert_tiny is here: {place}\n")
    assert file_hash(place / "model.safetensors") == file_hash(tiny / "model.safetensors")
    assert left(store) == [
        "MODELS.md", CHECKSUMS, "models", "models/bert_tiny",
        *(f"models/bert_tiny/{name}" for name in ("config.json", "model.safetensors", SOURCE, "vocab.txt")),
    ]  # fmt: skip
    page = (store / "MODELS.md").read_text()
    assert "| bert_tiny | bert   | Apache-2.0 | student |      2 |   128 |     2 |  4,385,920 |" in page
    assert f'AutoModel.from_pretrained("{place}")' in page
    asked = len(files.asked)
    assert fetch(named("bert_tiny", store).wanted(store)) == place
    kd(monkeypatch, "models", "verify")
    assert len(files.asked) == asked
    assert "bert_tiny: 3 files have the sha256 that was noted; bert, 2 layers, 128 wide" in capsys.readouterr().out
    kd(monkeypatch, "models", "remove", "bert_tiny")
    assert left(store) == ["MODELS.md", CHECKSUMS, "models"]
    assert "bert_tiny" not in (store / "MODELS.md").read_text()


def test_another_content_later_is_refused(files: Files, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = small(monkeypatch, store)
    files.put("/me/small/resolve/main", put_bert(store.parent / "one"))
    install(wanted)
    remove(wanted)
    files.content["/me/small/resolve/main/config.json"] += b" "
    with pytest.raises(UserError, match=r"config.json has the sha256 .*--new-checksums accepts"):
        install(wanted)
    assert find(wanted) is None
    install(wanted, new_checksums=True)


def test_a_pinned_sum_holds_always(files: Files, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = small(monkeypatch, store, hub={"model.safetensors": "0" * 64})
    files.put("/me/small/resolve/main", put_bert(store.parent / "one"))
    with pytest.raises(UserError, match=r"model.safetensors has the sha256 \w+, expected is 0000"):
        install(wanted, new_checksums=True)
    assert left(store) == ["models"]


def test_a_pickled_checkpoint_is_rewritten(files: Files, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from safetensors import safe_open

    wanted = small(monkeypatch, store)
    directory = put_bert(store.parent / "one")
    (directory / "model.safetensors").unlink()
    torch.manual_seed(0)
    state = {name: torch.randn(size) for name, size in bert_shapes(SMALL, old_names=True).items()}
    torch.save(state, directory / "pytorch_model.bin")
    files.put("/me/small/resolve/main", directory)
    place = install(wanted)
    assert not (place / "pytorch_model.bin").exists()
    with safe_open(place / "model.safetensors", "pt") as stored:
        found = {name: stored.get_tensor(name) for name in bert_shapes(SMALL)}
    assert torch.equal(found["bert.embeddings.LayerNorm.weight"], state["bert.embeddings.LayerNorm.gamma"])
    assert "without running anything in it" in json.loads((place / SOURCE).read_text())["notes"][0]


class Program:
    """What runs ``touch`` when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickled_program_is_not_run(files: Files, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    wanted = small(monkeypatch, store)
    directory = put_bert(store.parent / "one")
    (directory / "model.safetensors").unlink()
    torch.save({"bert.x": Program(store.parent / "ran")}, directory / "pytorch_model.bin")
    files.put("/me/small/resolve/main", directory)
    with pytest.raises(UserError, match="holds a getattr|holds a pathlib"):
        install(wanted)
    assert not (store.parent / "ran").exists()
    assert left(store) == ["models"]


def zipped(path: Path, *, folder: str = "") -> bytes:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in TF.iterdir():
            archive.write(file, f"{folder}{file.name}")
    return path.read_bytes()


@pytest.mark.parametrize("folder", ["", "uncased_L-2_H-16_A-2/"])
def test_an_archive_is_next_and_converted(
    files: Files, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    wanted = small(monkeypatch, store, "2020/small", archived={"vocab.txt": file_hash(TF / "vocab.txt")})
    files.content["/bert_models/2020/small.zip"] = zipped(store.parent / "a.zip", folder=folder)
    place = install(wanted)
    about = json.loads((place / SOURCE).read_text())
    assert about["source"] == "archive"
    assert about["notes"] == [
        "TensorFlow checkpoint: 46 tensors converted, 93 of an optimizer left out; heads for masked words and next "
        "sentence"
    ]
    assert files.times("/me/small/resolve/main/config.json") == 1
    assert [path.name for path in (store / "models").iterdir()] == ["small"]
    assert "Downloading small from" in capsys.readouterr().out


def test_an_archive_with_other_words_than_pinned(files: Files, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = small(monkeypatch, store, "2020/small", archived={"vocab.txt": "0" * 64})
    files.content["/bert_models/2020/small.zip"] = zipped(store.parent / "a.zip")
    with pytest.raises(UserError, match="vocab.txt in it does not have the sha256 0000"):
        install(wanted)


def test_a_store_behind_a_web_server_is_a_mirror(files: Files, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = small(monkeypatch, store)
    files.put("/me/small/resolve/main", put_bert(store.parent / "one"))
    place = install(wanted)
    files.content.clear()
    files.put("/mirror/models/small", place)
    monkeypatch.setenv("KD_MIRROR", f"{files.address}/mirror")
    monkeypatch.setenv("KD_STORE", str(store.parent / "second"))
    other = Wanted("model", "small", "me/small", store.parent / "second")
    assert file_hash(install(other) / "model.safetensors") == file_hash(place / "model.safetensors")
    files.asked.clear()
    remove(other)
    monkeypatch.setenv("KD_SOURCES", "mirror")
    install(other)
    assert all(path.startswith("/mirror/") for path, _ in files.asked)


def test_all_sources_are_named_when_none_has_it(files: Files, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = small(monkeypatch, store, "2020/small")
    files.faults["/bert_models/2020/small.zip"] = [500] * 10
    with pytest.raises(UserError) as caught:
        install(wanted)
    assert str(caught.value) == (
        f"small could not be downloaded. {files.address}/me/small/resolve/main/config.json: not there (404); "
        f"{files.address}/bert_models/2020/small.zip: the server answers 500 (5 times in a row). Other "
        f"ways: its files in {wanted.directory}, or KD_MIRROR=ADDRESS of a store that has it."
    )
    assert left(store) == ["models"]


def test_a_host_that_is_not_there_is_tried_once(store: Path, monkeypatch: pytest.MonkeyPatch, files: Files) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(places, "ARCHIVES", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"no connection .*; .*127.0.0.1:9 cannot be reached"):
        install(small(monkeypatch, store, "2020/small"))


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "KD_OFFLINE"])
def test_offline_opens_no_connection(store: Path, monkeypatch: pytest.MonkeyPatch, files: Files, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was opened"))
    with pytest.raises(UserError, match=f"{variable} is set"):
        fetch(named("bert_tiny", store).wanted(store))
    with pytest.raises(UserError, match="rules downloads out"):
        install(named("bert_tiny", store).wanted(store))
    assert files.asked == []


@pytest.mark.slow
def test_two_processes_download_once(files: Files, store: Path, tiny: Path) -> None:
    files.put(HUB, tiny)
    files.pause = 0.002
    line = [sys.executable, "-m", "kd", "models", "download", "bert_tiny"]
    both = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert files.times(f"{HUB}/model.safetensors") == 1
    assert all("bert_tiny is here" in text for text in said)


KILLS = """
import os, random, signal, sys, time
from kd.library import installation  # what takes long to import is there before the first child
from kd.store import Wanted, store_directory
random.seed(0)
wanted, begun, kills = Wanted("model", "bert_tiny", sys.argv[1], store_directory()), 0, 0
while kills < 20:
    child = os.fork()
    if not child:
        installation.install(wanted)
        os._exit(0)
    time.sleep(random.uniform(0.0, 1.0))
    os.kill(child, signal.SIGKILL)
    if os.waitpid(child, 0)[1] == signal.SIGKILL:
        kills += 1
        assert not wanted.directory.exists() or {path.name for path in wanted.directory.iterdir()} == {
            "config.json", "model.safetensors", "source.json", "vocab.txt"}
    if wanted.directory.exists():
        installation.remove(wanted)
        begun += 1
print(begun, "downloads were finished between", kills, "kills")
"""


@pytest.mark.slow
def test_twenty_kills_then_success(files: Files, store: Path, tiny: Path) -> None:
    files.put(HUB, tiny)
    files.pause = 0.0005
    done = subprocess.run([sys.executable, "-c", KILLS, HUB_ID], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("between 20 kills\n")
    resumed = [headers for _, headers in files.asked if "range" in headers]
    assert resumed
    place = install(named("bert_tiny", store).wanted(store))
    assert file_hash(place / "model.safetensors") == file_hash(tiny / "model.safetensors")
    assert left(store) == [
        "MODELS.md", CHECKSUMS, "models", "models/bert_tiny",
        *(f"models/bert_tiny/{name}" for name in ("config.json", "model.safetensors", SOURCE, "vocab.txt")),
    ]  # fmt: skip


def test_another_model_under_a_known_name_is_kept_apart(files: Files, store: Path) -> None:
    files.put("/me/other/resolve/main", put_bert(store.parent / "one"))
    other = Wanted("model", "bert_tiny", "me/other", store)
    assert fetch(other) == store / "models" / "me--other"
    assert find(other) == store / "models" / "me--other"
    assert find(named("bert_tiny", store).wanted(store)) is None


def test_what_is_there_and_not_kds_is_never_overwritten(
    files: Files, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = small(monkeypatch, store)
    wanted.directory.mkdir(parents=True)
    (wanted.directory / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="kd did not make it"):
        install(wanted)
    assert files.asked == []


def data_files(directory: Path, **rows: int) -> Path:
    import pyarrow
    from pyarrow import parquet

    for name, count in rows.items():
        path = directory / f"{name.replace('__', '/')}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = {"sentence": [f"text {i}" for i in range(count)], "label": [i % 2 for i in range(count)]}
        parquet.write_table(pyarrow.table(columns), path)
    return directory


def test_data_of_the_hub(
    files: Files, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kd.command_line import compose
    from kd.sources import stored

    there = {"data/train-00000-of-00001": 30, "data/validation-00000-of-00001": 10}
    directory = data_files(tmp_path / "hub", **{name.replace("/", "__"): count for name, count in there.items()})
    files.put("/datasets/stanfordnlp/sst2/resolve/main", directory)
    listing = {"siblings": [{"rfilename": f"{name}.parquet"} for name in there] + [{"rfilename": "README.md"}]}
    files.content["/api/datasets/stanfordnlp/sst2/revision/main"] = json.dumps(listing).encode()
    kd(monkeypatch, "data", "download", "sst2")
    files.content.clear()
    source = compose(["data=sst2"]).data.source
    data = stored("sst2", source.hub_id, source.hub_columns, ["negative", "positive"], str(store), str(tmp_path))
    assert data.splits["train"]["text"][:2] == ["text 0", "text 1"]
    capsys.readouterr()
    kd(monkeypatch, "data", "verify", "sst2")
    assert capsys.readouterr().out == "sst2: 2 files have the sha256 that was noted; rows: train 30, validation 10\n"


def test_data_that_the_hub_has_converted(files: Files, store: Path, tmp_path: Path) -> None:
    directory = data_files(tmp_path / "hub", default__train__0000=30, default__validation__0000=10)
    files.put("/datasets/SetFit/sst5/resolve/refs/convert/parquet", directory)
    names = ["default/train/0000.parquet", "default/validation/0000.parquet"]
    files.content["/api/datasets/SetFit/sst5/revision/main"] = b'{"siblings": [{"rfilename": "train.jsonl"}]}'
    files.content["/api/datasets/SetFit/sst5/revision/refs/convert/parquet"] = json.dumps(
        {"siblings": [{"rfilename": name} for name in names]}
    ).encode()
    place = install(Wanted("dataset", "sst5", "SetFit/sst5", store))
    assert sorted(path.name for path in place.iterdir()) == [SOURCE, "train-0000.parquet", "validation-0000.parquet"]


def test_data_of_several_kinds_are_not_mixed(files: Files, store: Path) -> None:
    listing = {"siblings": [{"rfilename": f"{kind}/train-0.parquet"} for kind in ("raw", "simplified")]}
    files.content["/api/datasets/SetFit/sst5/revision/main"] = json.dumps(listing).encode()
    with pytest.raises(UserError, match=r"several data sets \(raw/train-0.parquet, simplified/train-0.parquet\)"):
        install(Wanted("dataset", "sst5", "SetFit/sst5", store))


def test_data_that_no_hub_has(files: Files, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"emobank is to be had nowhere by that name: copy it to .*data/emobank"):
        kd(monkeypatch, "data", "download", "emobank")
    assert files.asked == []
