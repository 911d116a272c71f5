from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import STORE

from kd import demo
from kd.errors import UserError
from kd.sources import TextData, stored


def put(directory: Path, names: tuple[str, str] = ("text", "label"), **labels: list[int]) -> None:
    directory.mkdir(parents=True)
    for split, values in labels.items():
        table = {names[0]: [f"text {i}" for i in range(len(values))], names[1]: values}
        pd.DataFrame(table).to_parquet(directory / f"{split}.parquet")


def read(tmp_path: Path, **more: Any) -> TextData:
    settings: dict[str, Any] = {"hub_columns": {"sentence": "text", "label": "label"}, "label_names": ["no", "yes"]}
    return stored(
        "mine", "someone/mine", **settings | more, store=str(tmp_path / "store"), cache=str(tmp_path / "cache")
    )


def test_the_stores_splits_are_read(tmp_path: Path) -> None:
    put(tmp_path / "store" / "data" / "mine", train=[0, 1, 1], dev=[1, 0], test=[0])
    data = read(tmp_path)
    assert {split: list(rows["label"]) for split, rows in data.splits.items()} == {
        "train": [0, 1, 1],
        "validation": [1, 0],
        "test": [0],
    }
    assert data.splits["train"].column_names == ["text", "label"]


def test_a_hub_data_sets_columns_are_renamed_and_unlabelled_tests_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "datasets--someone--mine"
    put(repository / "snapshots" / "abc", ("sentence", "label"), train=[0, 1], validation=[1], test=[-1, -1])
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    data = read(tmp_path)
    assert set(data.splits) == {"train", "validation"}
    assert list(data.splits["train"]["text"]) == ["text 0", "text 1"]
    assert "test split has no labels" in capsys.readouterr().out
    assert data.key != read(tmp_path, label_names=["yes", "no"]).key
    with pytest.raises(UserError, match="no column body, only sentence, label"):
        read(tmp_path, hub_columns={"body": "text", "label": "label"})


def test_labels_out_of_range_and_missing_columns_are_named(tmp_path: Path) -> None:
    put(tmp_path / "store" / "data" / "mine", train=[0, 1, 2], dev=[1])
    with pytest.raises(UserError, match=r"train files have the labels \[2\], known are 0 to 1"):
        read(tmp_path)
    put(tmp_path / "b" / "store" / "data" / "mine", ("body", "label"), train=[0, 1], dev=[1])
    with pytest.raises(UserError, match="train files lack the column text"):
        read(tmp_path / "b")


def test_the_demo_is_the_same_everywhere() -> None:
    made = demo.generate(rows=50, scored_rows=50, seed=0, noise=0.1)
    clean = demo.generate(rows=50, scored_rows=50, seed=0, noise=0.0)
    assert list(clean.splits["train"]["text"]) == list(made.splits["train"]["text"])
    wrong = sum(a != b for a, b in zip(clean.splits["train"]["label"], made.splits["train"]["label"], strict=True))
    assert 0 < wrong < 15
    assert list(clean.splits["test"]["label"]) == list(made.splits["test"]["label"])


def test_every_word_of_the_demo_is_in_its_vocabulary() -> None:
    made = demo.generate(rows=500, scored_rows=10, seed=1, noise=0.0)
    tokenizer = made.tokenizer
    for ids in tokenizer(list(made.splits["train"]["text"]))["input_ids"]:
        assert tokenizer.unk_token_id not in ids
        assert len(ids) <= 32
    assert len(tokenizer) <= 512


def test_the_demos_labels_follow_its_grammar() -> None:
    """A second reading of the plain sentences, which counts what turns an opinion round."""
    made = demo.generate(rows=400, scored_rows=10, seed=2, noise=0.0)
    read = 0
    for text, label in zip(made.splits["train"]["text"], made.splits["train"]["label"], strict=True):
        if " but " in text or " although " in text:
            continue
        words = text.split()
        turns = sum(text.count(phrase) for phrase in demo.FLIP) + sum(
            words.count(w) for w in ("not", "never", "hardly")
        )
        assert label == ((words[-1] in demo.GOOD) == (turns % 2 == 0)), text
        read += 1
    assert read > 100


@pytest.mark.skipif(not STORE.is_dir(), reason="the store is not beside this checkout")
def test_sst2_of_the_store(tmp_path: Path) -> None:
    data = stored("sst2", "stanfordnlp/sst2", {}, ["negative", "positive"], str(STORE), str(tmp_path))
    assert {split: len(rows) for split, rows in data.splits.items()} == {
        "train": 67349,
        "validation": 872,
        "test": 1821,
    }
    assert sum(data.splits["test"]["label"]) == 909


def test_words_have_tags_and_texts_without_label_names_have_no_label(tmp_path: Path) -> None:
    directory = tmp_path / "store" / "data" / "mine"
    directory.mkdir(parents=True)
    rows = pd.DataFrame({"words": [["a", "b"], ["c"]], "tags": [[0, 1], [0]]})
    for split in ("train", "dev"):
        rows.to_parquet(directory / f"{split}.parquet")
    columns = {"words": "tokens", "tags": "label"}
    data = read(tmp_path, columns=columns)
    assert data.splits["train"].to_dict() == {"tokens": [["a", "b"], ["c"]], "label": [[0, 1], [0]]}
    with pytest.raises(UserError, match="have the labels \\[1\\], known are 0 to 0"):
        read(tmp_path, columns=columns, label_names=["O"])
    pd.DataFrame({"words": [["a", "b"]], "tags": [[0]]}).to_parquet(directory / "dev.parquet")
    with pytest.raises(UserError, match="row 1 of the validation files has not as many tags as words"):
        read(tmp_path, columns=columns)


def test_some_validation_rows_are_taken_the_same_ones_for_a_split_seed(tmp_path: Path) -> None:
    put(tmp_path / "store" / "data" / "mine", train=[0, 1], dev=[0, 1] * 20)
    whole = read(tmp_path, label_names=[])
    assert whole.splits["validation"].column_names == ["text"]
    some, again, other = (read(tmp_path, label_names=[], validation_rows=9, split_seed=seed) for seed in (0, 0, 1))
    assert len(some.splits["validation"]) == 9
    assert some.splits["validation"]["text"][:] == again.splits["validation"]["text"][:]
    assert some.splits["validation"]["text"][:] != other.splits["validation"]["text"][:]
    assert some.key == again.key
    assert len({whole.key, some.key, other.key}) == 3
