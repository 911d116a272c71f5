from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kd.errors import UserError
from kd.network import hub_address, hub_reachable
from kd.store import (
    Wanted,
    complete,
    content_key,
    find,
    new_directory,
    require,
    split_files,
)


def put_model(directory: Path) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"x")
    return directory


def test_the_store_comes_first(tmp_path: Path) -> None:
    wanted = Wanted("model", "bert_tiny", "google/bert_uncased_L-2_H-128_A-2", tmp_path)
    assert find(wanted) is None
    put_model(wanted.directory)
    assert find(wanted) == tmp_path / "models" / "bert_tiny"


def test_a_model_without_weights_is_not_there(tmp_path: Path) -> None:
    directory = put_model(tmp_path / "models" / "x")
    (directory / "model.safetensors").unlink()
    assert find(Wanted("model", "x", None, tmp_path)) is None


def test_the_hubs_cache_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    repository = cache / "datasets--stanfordnlp--sst2"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    data = repository / "snapshots" / "abc" / "data"
    data.mkdir(parents=True)
    for name in ("train-00000-of-00001", "validation-00000-of-00001", "test-00000-of-00001"):
        (data / f"{name}.parquet").write_bytes(b"x")
    wanted = Wanted("dataset", "sst2", "stanfordnlp/sst2", tmp_path / "store")
    snapshot = find(wanted)
    assert snapshot == data.parent
    assert {split: len(files) for split, files in split_files(data.parent).items()} == {
        "train": 1,
        "validation": 1,
        "test": 1,
    }


def test_everything_missing_is_named_in_one_paragraph(tmp_path: Path) -> None:
    here = put_model(tmp_path / "models" / "here")
    assert complete("model", here)
    wanted = [Wanted("model", name, f"hub/{name}", tmp_path) for name in ("here", "gone", "lost")]
    with pytest.raises(UserError) as caught:
        require(wanted)
    text = str(caught.value)
    assert "gone" in text
    assert "hf download hub/lost" in text
    assert "hub/here" not in text
    assert "HF_HUB_OFFLINE is set" in text
    require(wanted[:1])


def test_a_network_that_drops_packets_costs_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: time.sleep(30))
    start = time.perf_counter()
    assert not hub_reachable(seconds=0.3)
    assert time.perf_counter() - start < 2


def test_a_proxy_is_what_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert hub_address() == ("huggingface.co", 443)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    assert hub_address() == ("proxy.example", 3128)


def test_offline_opens_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.create_connection", never)
    assert not hub_reachable()


def test_keys_depend_on_every_part() -> None:
    assert content_key(a=1, b=2) == content_key(b=2, a=1)
    assert content_key(a=1, b=2) != content_key(a=1, b=3)


def test_a_failed_directory_leaves_the_old_one(tmp_path: Path) -> None:
    with new_directory(tmp_path / "x") as unfinished:
        (unfinished / "file").write_text("first")

    def fail() -> None:
        with new_directory(tmp_path / "x") as unfinished:
            (unfinished / "file").write_text("second")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (tmp_path / "x" / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_killed_while_saving_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from kd.store import new_directory\n"
        "with new_directory(Path(sys.argv[1]) / 'student') as unfinished:\n"
        "    (unfinished / 'config.json').write_text('{}')\n"
        "    (unfinished / 'model.safetensors').write_bytes(b'half')\n"
        "    print('saving', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "saving\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "student").exists()
    assert all(path.name.startswith(".student.unfinished-") for path in tmp_path.iterdir())
