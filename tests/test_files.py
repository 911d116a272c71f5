"""Own files through the public functions: what is read, what is guessed and said, and every bad input by its words."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import ROOT, STORE

from kd import artefact, demo, files
from kd.batches import Draw
from kd.check import check_before_loading
from kd.command_line import compose
from kd.datamodule import TextDataModule
from kd.errors import UserError
from kd.sources import TextData

GOOD = "review,stars\n" + "".join(f"a fine film number {i},good\na dull film number {i},bad\n" for i in range(10))


def put(directory: Path, content: str | bytes, name: str = "reviews.csv") -> Path:
    path = directory / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(train: Path | str, **more: Any) -> TextData:
    given = {"text": None, "label": None, "label_names": None, "validation_share": 0.1, "split_seed": 0,
             "drop_empty": False}  # fmt: skip
    paths = {split: str(more.pop(split)) if split in more else None for split in ("validation", "test")}
    return files.read(name="files-reviews", files={"train": str(train), **paths}, **(given | more))


def rows(data: TextData, split: str) -> list[tuple[str, str]]:
    table = data.splits[split]
    return [(text, data.label_names[label]) for text, label in zip(table["text"], table["label"], strict=True)]


def every_row(data: TextData) -> list[tuple[str, str]]:
    return sorted(row for split in data.splits for row in rows(data, split))


EXPECTED = sorted(
    (f"a {word} film number {i}", label) for word, label in (("fine", "good"), ("dull", "bad")) for i in range(10)
)


def written(directory: Path, name: str) -> Path:
    table = pd.DataFrame(EXPECTED, columns=["review", "stars"])
    path = directory / name
    if name.endswith(".parquet"):
        table.to_parquet(path)
    elif "json" in name:
        table.to_json(path, orient="records", lines=name != "list.json")
    else:
        table.to_csv(path, index=False, sep="\t" if ".tsv" in name else ";" if "semicolon" in name else ",")
    return path


@pytest.mark.parametrize(
    "name",
    ["a.csv", "a.csv.gz", "a.tsv", "semicolon.csv", "a.jsonl", "a.ndjson", "a.json", "list.json", "a.jsonl.xz",
     "a.parquet"],
)  # fmt: skip
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    data = read(written(tmp_path, name))
    assert every_row(data) == EXPECTED
    assert data.text_columns == ("review",)
    assert data.key == read(written(tmp_path, "other.csv")).key  # the content, not the form


def test_a_validation_part_is_split_off_alike_and_for_every_seed_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"a film {i},{'good' if i % 4 else 'bad'}" for i in range(200)]
    path = put(tmp_path, "\n".join(["text,label", *lines]))
    data = read(path)
    assert "Validation: 20 of 200 rows split off, 10 % of each label, data.split_seed=0" in capsys.readouterr().out
    assert Counter(label for _, label in rows(data, "validation")) == {"good": 15, "bad": 5}
    assert not set(rows(data, "validation")) & set(rows(data, "train"))
    assert rows(read(path), "validation") == rows(data, "validation")
    other = read(path, split_seed=1)
    assert rows(other, "validation") != rows(data, "validation")
    assert other.key != data.key


def test_rare_labels_stay_in_both_parts_or_in_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = put(tmp_path, GOOD + "odd one,odd\nodd two,odd\nlonely,lone\n")
    data = read(path)
    counts = {split: Counter(label for _, label in rows(data, split)) for split in data.splits}
    assert counts["train"] == {"good": 9, "bad": 9, "odd": 1, "lone": 1}
    assert counts["validation"] == {"good": 1, "bad": 1, "odd": 1}
    assert "Labels with a single row stay in train, validation has none of them: 1 ('lone')" in capsys.readouterr().out


def test_given_files_are_taken_and_what_stands_in_two_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = put(tmp_path, GOOD)
    validation = put(tmp_path, "stars,review\ngood,a fine film number 3\nbad,new words\n", "dev.csv")
    data = read(train, validation=validation, test=validation)
    assert len(data.splits["train"]) == 20
    assert rows(data, "validation") == [("a fine film number 3", "good"), ("new words", "bad")]
    out = capsys.readouterr().out
    assert "1 of 2 validation texts are also in train" in out
    assert "1 of 2 test texts are also in train" in out


def test_a_test_file_without_labels_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unlabelled = put(tmp_path, "review,stars\na film,\nanother,\n", "test.csv")
    data = read(put(tmp_path, GOOD), test=unlabelled)
    assert set(data.splits) == {"train", "validation"}
    assert "has no labels in the column 'stars'; only validation is scored" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["b", " a", "b ", "a"], ["a", "b"]),
        (["10", "9", "10", "9"], ["9", "10"]),
        (["1.0", "2", "1", "2.0"], ["1", "2"]),
        (["True", "false", "TRUE", "False"], ["false", "true"]),
        (["007", "1", "007", "1"], ["007", "1"]),
        (["NA", "null", "NA", "null"], ["NA", "null"]),
    ],
)
def test_label_names_are_read_from_the_data(tmp_path: Path, values: list[str], names: list[str]) -> None:
    lines = [f"some text {i},{value}" for i, value in enumerate(values * 5)]
    assert read(put(tmp_path, "\n".join(["text,label", *lines]))).label_names == names


@pytest.mark.parametrize(
    ("values", "names"),
    [([1.0, 0.0], ["0", "1"]), ([True, False], ["false", "true"]), ([-1, 1], ["-1", "1"])],
)
def test_typed_labels_of_parquet(tmp_path: Path, values: list[Any], names: list[str]) -> None:
    pd.DataFrame({"text": ["a film"] * 10, "label": values * 5}).to_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").label_names == names


def test_classes_keep_their_names_and_order(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["positive", "negative"])})
    table = Dataset.from_dict({"text": ["a", "b"] * 5, "label": [0, 1] * 5}, features=features)
    table.to_parquet(str(tmp_path / "a.parquet"))
    data = read(tmp_path / "a.parquet")
    assert data.label_names == ["positive", "negative"]
    assert set(every_row(data)) == {("a", "positive"), ("b", "negative")}
    assert read(tmp_path / "a.parquet", label_names=["negative", "positive"]).label_names == ["negative", "positive"]


def test_label_names_order_and_rename(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = put(tmp_path, GOOD)
    turned = read(path, label_names=["good", "bad"])
    assert turned.label_names == ["good", "bad"]
    assert every_row(turned) == EXPECTED
    assert turned.key != read(path).key
    numbers = put(tmp_path, GOOD.replace("good", "1").replace("bad", "0"), "numbers.csv")
    assert every_row(read(numbers, label_names=["bad", "good"])) == EXPECTED
    assert "Labels: 0 is bad, 1 is good (data.label_names)" in capsys.readouterr().out


def test_words_that_look_like_nothing_are_words(tmp_path: Path) -> None:
    texts = ["NA", "null", "None", "nan", "12", "1.50"]
    lines = [f"{text},{i % 2}" for i, text in enumerate(texts * 3)]
    data = read(put(tmp_path, "\n".join(["text,label", *lines])))
    assert {text for text, _ in every_row(data)} == set(texts)


def test_quotes_line_breaks_and_blank_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = 'a film, they said ""good""\nand left'
    data = read(put(tmp_path, "\ufeff" + GOOD.replace("\n", "\r\n") + f'"{odd}",good\r\n\r\n,\r\n'))
    assert ('a film, they said "good"\nand left', "good") in every_row(data)
    assert len(every_row(data)) == 21
    assert "blank rows left out: 1" in capsys.readouterr().out


def test_a_tsv_without_quoting_is_seen_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f'"quoted" word {i}\tgood\n"so what {i}\tbad' for i in range(5)]
    data = read(put(tmp_path, "\n".join(["text\tlabel", *lines]), "a.tsv"))
    assert ('"so what 3', "bad") in every_row(data)
    assert "quotes are taken as part of the text" in capsys.readouterr().out


GUESSES = [
    (["Text", "Label"], ("Text",), "Label"),
    (["id", "sentence", "label"], ("sentence",), "label"),
    (["premise", "hypothesis", "label", "idx"], ("premise", "hypothesis"), "label"),
    (["question", "sentence", "label"], ("question", "sentence"), "label"),
    (["words", "verdict"], ("words",), "verdict"),
]


@pytest.mark.parametrize(("names", "text", "label"), GUESSES, ids=[",".join(names) for names, _, _ in GUESSES])
def test_columns_are_guessed_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str], text: tuple[str, ...], label: str
) -> None:
    made: dict[str, list[Any]] = {name: [f"{name} is a text {i}" for i in range(10)] for name in names}
    made |= {label: ["x", "y"] * 5, "idx": list(range(10))}
    pd.DataFrame({name: made[name] for name in names}).to_csv(tmp_path / "a.csv", index=False)
    assert read(tmp_path / "a.csv").text_columns == text
    shown = text[0] if len(text) == 1 else f"[{','.join(text)}]"
    assert f"Columns: text {shown}, label {label} (guessed" in capsys.readouterr().out
    read(tmp_path / "a.csv", text=list(text), label=label)
    assert "guessed" not in capsys.readouterr().out


def bad(name: str, content: str | bytes, says: str, **settings: Any) -> Any:
    return pytest.param(name, content, settings, says, id=says)


BAD = [
    bad("a.csv", b"text,label\ngut,1\nsch\xf6n,0\n", "byte 0xf6 in line 3. Convert it, for instance: iconv -f latin1"),
    bad("a.csv", "text,label\na,1\n".encode("utf-16"), "iconv -f utf-16 -t utf-8"),
    bad("a.csv", "text,text,label\na,b,1\n", "the header names 'text' more than once"),
    bad("a.csv", "text,label\n", "has no rows, only a header"),
    bad("a.csv", "text,label\na film,1\na film, a bad one,0\n", "line 3 has 3 fields, the header has 2"),
    bad("a.csv", 'text,label\na film,1\n"good" he said,0\n', "line 3: ',' expected after '\"'"),
    bad("a.csv", 'text,label\n"a film,1\nmore,0\n', "line 2: a text in quotes begins there and never ends"),
    bad("a.csv", GOOD, "no column 'reviw', only review, stars: give data.text. Did you mean 'review'?", text="reviw"),
    bad("a.csv", GOOD, "both 'stars': one column cannot be both", text="stars", label="stars"),
    bad("a.csv", GOOD, "data.text=['a', 'b', 'c']: give one column, or two different ones", text=["a", "b", "c"]),
    bad("a.csv", "one,two,three\na,b,c\n", "It has one, two, three: give data.text=COLUMN data.label=COLUMN"),
    bad("a.csv", "text,body,label\na,b,c\n", "It has text, body, label: give data.text=COLUMN data.label=label"),
    bad("a.csv", "a good long film,1\na bad long film,0\n" * 5, "reads like data"),
    bad("a.csv", GOOD + ",good\n  ,bad\n", "2 of 22 rows have an empty text (column 'review'; lines 22, 23)"),
    bad("a.csv", GOOD + "a film,\n", "1 of 21 rows has no label (column 'stars'; line 22)"),
    bad("a.csv", GOOD.replace("bad", "good"), "every row has the label 'good'"),
    bad("a.csv", "text,label\na,0.5\nb,1\nc,2.25\n", "holds real numbers (0.5, 2.25, ...)"),
    bad("a.csv", "text,label\n" + "".join(f"a,{i}\n" for i in range(9)), "9 different values in 9 rows"),
    bad("a.csv", GOOD + "a film,Good\n", "'Good', 'good' differ in case alone"),
    bad("a.csv", GOOD, "lacks the label 'good' of the data. The data have bad, good", label_names=["bad", "goood"]),
    bad("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"\n', "is no JSON (Expecting ',' delimiter, column 13)"),
    bad("a.jsonl", '{"text": "a", "label": 1}\n\n[1]\n', "line 3 is not an object such as"),
    bad("a.jsonl", '{"text": ["a"], "label": 1}\n', "line 1: the text column 'text' holds list values, not text"),
    bad("a.jsonl", '{"text": "a", "label": [1]}\n', "line 1: the label column 'label' holds list values"),
    bad("a.jsonl", '{"text": "\\ud800", "label": 1}\n', "line 1: the text has half of a surrogate pair"),
    bad("a.parquet", "no parquet", "cannot be read as parquet"),
    bad("a.csv.gz", "no gzip", "cannot be read: Not a gzipped file"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "settings", "says"), BAD)
def test_bad_files_are_named_in_one_paragraph(
    tmp_path: Path, name: str, content: str | bytes, settings: dict[str, Any], says: str
) -> None:
    path = put(tmp_path, content, name)
    with pytest.raises(UserError) as caught:
        read(path, **settings)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_incomplete_rows_are_left_out_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = read(put(tmp_path, GOOD + ",good\na film,\n"), drop_empty=True)
    assert every_row(data) == EXPECTED
    out = capsys.readouterr().out
    assert "1 of 22 rows has an empty text (column 'review'; line 22) and 1 of 22 rows has no label" in out
    assert "2 rows left out" in out


def test_labels_that_training_never_saw(tmp_path: Path) -> None:
    dev = put(tmp_path, "review,stars\na,good\nb,godo\nc,godo\nd,meh\n", "dev.csv")
    with pytest.raises(UserError) as caught:
        read(put(tmp_path, GOOD), validation=dev)
    says = "validation has labels that no training row has: 'godo' in 2 rows, 'meh' in 1 row. Did you mean 'good'?"
    assert says in str(caught.value)
    lacking = put(tmp_path, "text,stars\na,good\n", "lacking.csv")
    with pytest.raises(UserError, match="has no column 'review', only text, stars"):
        read(put(tmp_path, GOOD), validation=lacking)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "data=files needs a training file: data.train=reviews.csv"),
        (["data.train=revews.csv"], "there is no such file in {}. Did you mean 'reviews.csv'?"),
        (["data.train=gone/reviews.csv"], "there is no directory {}/gone"),
        (["data.train=reviews.xlsx"], "the suffix '.xlsx' does not say what it is"),
        (["data.train=empty.csv"], "the file is empty (0 bytes)"),
        (["data.train=reviews.csv", "data.validation=."], "is a directory"),
        (["data.train=reviews.csv", "data.test=[a.csv,b.csv]"], "give one file"),
        (["data.train=reviews.csv", "data.text=[a,b,c]"], "give one column, or two"),
        (["data.train=reviews.csv", "data.text=a", "data.label=a"], "one column cannot be both"),
        (["data.train=reviews.csv", "data.label_names=good"], "give a list"),
    ],
)
def test_what_needs_no_reading_is_answered_before_loading(tmp_path: Path, lines: list[str], says: str) -> None:
    put(tmp_path, GOOD)
    put(tmp_path, b"PK", "reviews.xlsx")
    put(tmp_path, b"", "empty.csv")
    here = [re.sub(r"=(?=[^=]*(csv|xlsx)$|\.$)", f"={tmp_path}/", line) for line in lines]
    with pytest.raises(UserError) as caught:
        check_before_loading(compose(["data=files", *here]))
    assert says.replace("{}", str(tmp_path)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_is_called_after_its_file() -> None:
    assert compose(["data=files"]).data.name == "files"
    assert compose(["data=files", "data.train=some/my reviews.csv.gz"]).data.name == "files-my_reviews"
    assert compose(["data=hub", "data.id=nyu-mll/glue", "data.subset=mrpc"]).data.name == "hub-glue-mrpc"


def test_a_changed_row_changes_the_key(tmp_path: Path) -> None:
    before = read(put(tmp_path, GOOD)).key
    assert read(put(tmp_path, GOOD)).key == before
    assert read(put(tmp_path, GOOD.replace("film number 7", "film number seven"))).key != before
    assert read(put(tmp_path, GOOD.replace("fine film number 7,good", "fine film number 7,bad"))).key != before


PAIRS = (
    "premise,hypothesis,label\n"
    + "".join(f"the soup was good,the soup was {word},{label}\n" for word, label in (("good", "yes"), ("bad", "no")))
    * 5
)


def test_pairs_are_encoded_as_the_tokenizer_does_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = read(put(tmp_path, PAIRS))
    assert data.text_columns == ("premise", "hypothesis")
    tokenizer = demo.tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # as BERT's has
    found = TextDataModule(data, {"student": tokenizer}, tmp_path, max_length=32).splits["train"]
    batch = found[Draw([0], {})]["student"]
    row = data.splits["train"][0]
    expected = tokenizer(row["text"], row["text_pair"])
    assert batch["input_ids"].tolist() == [expected["input_ids"]]
    assert batch["token_type_ids"].tolist() == [expected["token_type_ids"]]
    capsys.readouterr()
    cut = TextDataModule(data, {"student": tokenizer}, tmp_path, max_length=8).splits["train"]
    assert cut.lengths.tolist() == [8] * 8  # of 11 tokens, from the longer side first
    assert "train: 8 of 8 pairs are longer than 8 tokens and were cut" in capsys.readouterr().out
    with pytest.raises(UserError, match="a pair takes 6 tokens"):
        TextDataModule(data, {"student": tokenizer}, tmp_path, max_length=5)


def test_a_model_of_pairs_predicts_pairs(tmp_path: Path) -> None:
    from conftest import model

    tokenizer = demo.tokenizer()
    made = model()
    artefact.save_float(tmp_path / "m", made, tokenizer, 32, ("premise", "hypothesis"))
    loaded = artefact.load(tmp_path / "m")
    pairs = [("the soup was good", "the soup was bad"), ("the soup", "bad")]
    expected = [made(**tokenizer(*pair, return_tensors="pt")).logits[0].tolist() for pair in pairs]
    for found, wanted in zip(loaded.logits(pairs).tolist(), expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-5)
    assert loaded.predict([]) == []
    with pytest.raises(UserError, match=r"trained on pairs of texts \(premise, hypothesis\)"):
        loaded.predict("a single text")
    with pytest.raises(UserError, match="pairs .* alone"):
        loaded.predict([pairs[0], "a single text"])
    artefact.save_float(tmp_path / "s", made, tokenizer, 32)
    with pytest.raises(UserError, match="trained on single texts"):
        artefact.load(tmp_path / "s").predict(pairs)


def command(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "KD_", "PYTEST"))}
    more = {"KD_CACHE": str(directory / "cache"), "KD_STORE": str(STORE), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=directory, env=kept | more, timeout=300
    )


KD = ["-c", "from kd.cli import main; main()"]
SHORT = [
    "teacher=minilm_l6", "teacher.fine_tune.max_steps=2", "teacher.gate=false", "student=layers",
    "student.num_layers=2", "data.max_length=24", "trainer.max_steps=2", "report.measure=false", "logger=csv",
    "hydra.run.dir=run",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not STORE.is_dir(), reason="the store is not beside this checkout")
@pytest.mark.parametrize("pairs", [False, True])
def test_from_a_csv_file_to_predictions(tmp_path: Path, pairs: bool) -> None:
    header = "premise,hypothesis,verdict" if pairs else "review,verdict"
    texts = [
        f'"the soup, number {i}, was good"' + ",it was good" * pairs + f",{'yes' if i % 2 else 'no'}"
        for i in range(200)
    ]
    put(tmp_path, "\n".join([header, *texts]) + "\n")
    text = "data.text=[premise,hypothesis]" if pairs else "data.text=review"
    done = command(tmp_path, str(ROOT / "train.py"), "data=files", "data.train=reviews.csv", text,
                   "data.label=verdict", *SHORT)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Validation: 20 of 200 rows split off, 10 % of each label" in done.stdout
    assert "on files-reviews" in json.loads((tmp_path / "run" / "report.json").read_text())["title"]
    stored = json.loads((tmp_path / "run" / "student" / "kd.json").read_text())
    assert stored["text_columns"] == header.split(",")[:-1]
    done = command(tmp_path, *KD, "predict", "--model", "run/student", "--input", "reviews.csv")  # the column is known
    assert done.returncode == 0, done.stderr
    found = list(csv.DictReader(done.stdout.splitlines()))
    assert len(found) == 200
    assert {row["label"] for row in found} <= {"yes", "no"}
    assert [row["verdict"] for row in found[:2]] == ["no", "yes"]
    if pairs:
        done = command(tmp_path, *KD, "predict", "--model", "run/student", "--json", "the soup was good", "it was good")
        assert json.loads(done.stdout)["text"] == ["the soup was good", "it was good"]
        done = command(tmp_path, *KD, "predict", "--model", "run/student", "a single text")
        assert "trained on pairs of texts (premise, hypothesis): give them two by two" in done.stderr


def test_bad_input_ends_a_run_with_nothing_left_behind(tmp_path: Path) -> None:
    put(tmp_path, GOOD)
    done = command(tmp_path, str(ROOT / "train.py"), "data=files", "data.train=revews.csv", *SHORT)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "Did you mean 'reviews.csv'?" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"reviews.csv"}
