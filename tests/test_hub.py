"""Data sets of the hub, by a directory of the same form; none is asked."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from conftest import no_answer

from kd import hub
from kd.check import check_before_loading
from kd.command_line import compose
from kd.errors import UserError
from kd.sources import TextData


def put(directory: Path, **splits: list[int]) -> Path:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features(
        {"idx": Value("int32"), "sentence": Value("string"), "label": ClassLabel(names=["world", "sport"])}
    )
    directory.mkdir(parents=True)
    for split, labels in splits.items():
        rows = {
            "idx": list(range(len(labels))),
            "sentence": [f"{split} {i}" for i in range(len(labels))],
            "label": labels,
        }
        Dataset.from_dict(rows, features=features).to_parquet(str(directory / f"{split}-00000-of-00001.parquet"))
    return directory


def load(data_id: Any, tmp_path: Path, **more: Any) -> TextData:
    given: dict[str, Any] = {"subset": None, "splits": {}, "task": None, "text": None, "label": None,
             "label_names": None, "validation_share": 0.1, "split_seed": 0, "drop_empty": False}  # fmt: skip
    given |= more
    given["splits"] = {"train": None, "validation": None, "test": None} | given["splits"]
    return hub.load(name="hub-mine", id=str(data_id), cache=str(tmp_path / "cache"), **given)


def test_splits_classes_and_columns_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = put(tmp_path / "mine", train=[0, 1, 1], validation=[1, 0], test=[-1, -1])
    data = load(path, tmp_path)
    assert {split: list(rows["label"]) for split, rows in data.splits.items()} == {
        "train": [0, 1, 1],
        "validation": [1, 0],
    }
    assert data.label_names == ["world", "sport"]
    assert list(data.splits["train"]["text"]) == ["train 0", "train 1", "train 2"]
    out = capsys.readouterr().out
    assert "Columns: text sentence, label label (guessed" in out
    assert "test has no labels in the column 'label'; only validation is scored" in out


def test_a_missing_validation_is_split_off_and_rows_without_class_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = put(tmp_path / "mine", train=[0, 1] * 10 + [-1], test=[0, 1])
    with pytest.raises(UserError, match=r"1 of 21 rows has no label \(column 'label'; row 21\)"):
        load(path, tmp_path)
    data = load(path, tmp_path, drop_empty=True)
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 18, "validation": 2, "test": 2}
    assert "Validation: 2 of 20 rows split off" in capsys.readouterr().out


def test_splits_can_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = put(tmp_path / "mine", train=[0, 1], test=[0, 1, 1])
    data = load(path, tmp_path, splits={"validation": "test"})
    assert len(data.splits["validation"]) == 3
    with pytest.raises(UserError, match="data.validation=tset: .* has the splits train, test. Did you mean 'test'?"):
        load(path, tmp_path, splits={"validation": "tset"})
    bare = put(tmp_path / "bare", test=[0, 1])
    with pytest.raises(UserError, match="has no split named train, only test: give data.train=NAME"):
        load(bare, tmp_path)


def test_what_is_in_the_hubs_cache_is_read_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "datasets--someone--mine"
    put(repository / "snapshots" / "abc", train=[0, 1], validation=[1])
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert list(load("someone/mine", tmp_path).splits["train"]["label"]) == [0, 1]


@pytest.mark.parametrize(
    ("data_id", "says"),
    [
        (None, "data=hub needs the name of a data set there"),
        ("someone/gone", "neither a directory nor in the cache of huggingface.co on this disk"),
        ("./gone", "there is no such directory"),
        ("some/reviews.csv", "data=files data.train=some/reviews.csv reads it"),
        ("a b", "is no name of a data set"),
    ],
)
def test_what_cannot_be_had_is_said_before_loading(data_id: str | None, says: str) -> None:
    with pytest.raises(UserError) as caught:
        hub.check(data_id)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_network_it_takes_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("socket.create_connection", no_answer)
    (tmp_path / "models").mkdir()
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "config.json").write_text("{}")
    (weights / "model.safetensors").write_bytes(b"")
    cfg = compose(["data=hub", "data.id=someone/gone", "teacher=bert_tiny", "student=layers", "student.num_layers=1",
                   f"teacher.weights={weights}"])  # fmt: skip
    start = time.perf_counter()
    with pytest.raises(UserError, match="it cannot be reached from here. With a network, fetch it once"):
        check_before_loading(cfg)
    assert time.perf_counter() - start < 5


def test_a_changed_directory_is_read_anew(tmp_path: Path) -> None:
    before = load(put(tmp_path / "mine", train=[0, 1], validation=[1]), tmp_path)
    (tmp_path / "mine").rename(tmp_path / "old")
    after = load(put(tmp_path / "mine", train=[0, 1], validation=[0]), tmp_path)
    assert list(after.splits["validation"]["label"]) == [0]
    assert after.key != before.key


def test_a_directory_that_holds_no_data_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="data.id="):
        load(tmp_path / "mine", tmp_path)
