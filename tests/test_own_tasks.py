"""Own data for every task: what is seen, what is read, and each bad input by its words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import ROOT, STORE
from omegaconf import OmegaConf
from test_files import GOOD, SHORT, command, put, read

from kd import demo, tasks
from kd.build import make_task
from kd.check import check_before_loading, check_values
from kd.command_line import compose
from kd.errors import UserError
from kd.labels import KINDS
from kd.labels.fit import TAKES, check_fit
from kd.sources import TextData


def jsonl(directory: Path, rows: list[dict[str, Any]], name: str = "a.jsonl") -> Path:
    return put(directory, "".join(json.dumps(row) + "\n" for row in rows), name)


def labels(data: TextData, split: str = "train") -> dict[str, Any]:
    """The label of each text, or of each sentence."""
    rows = data.splits[split]
    texts = rows["text"] if "text" in rows.column_names else [" ".join(tokens) for tokens in rows["tokens"]]
    return dict(zip(texts, rows["label"], strict=True))


def all_labels(data: TextData) -> dict[str, Any]:
    return {text: label for split in data.splits for text, label in labels(data, split).items()}


def csv(values: list[Any], column: str = "score") -> str:
    return f"text,{column}\n" + "".join(f'a film {i},"{value}"\n' for i, value in enumerate(values))


def sentences(tags: Any, count: int = 1) -> list[dict[str, Any]]:
    return [{"tokens": ["Ann", "Lee", "saw", "Rome"], "ner_tags": tags}] * count


WIKI = [
    {"tokens": ["Ann", "Lee", "slept"], "ner_tags": ["B-PER", "I-PER", "O"]},
    {"tokens": ["Rome"], "ner_tags": ["B-LOC"]},
]


def test_the_names_are_those_of_the_tasks() -> None:
    assert list(tasks.NAMES) == list(KINDS)
    assert list(KINDS) == [
        "classification", "multilabel", "regression", "ordinal", "token_classification", "masked_lm",
        "feature_extraction",
    ]  # fmt: skip
    assert set(TAKES) < set(KINDS)


DETECTED: list[tuple[dict[str, Any], str, list[Any], str, str]] = [
    ({"text": "a b c"}, "label", ["x", "y"], "classification", "names"),
    ({"text": "a b c"}, "label", [3, 4], "classification", "whole numbers"),
    ({"text": "a b c"}, "label", [3.5, 4], "regression", "real numbers"),
    ({"text": "a b c"}, "label", [["x", "y"], []], "multilabel", "a list of labels a row"),
    ({"text": "a b c"}, "labels", [[0, 2], [1]], "multilabel", "a list of labels a row"),
    ({"tokens": ["a", "b"]}, "ner_tags", [["O", "B-X"], ["O", "O"]], "token_classification", "a list of tags a row"),
    ({"id": 3, "words": ["a"]}, "tags", [["O"], ["B-X"]], "token_classification", "a list of tags a row"),
]


@pytest.mark.parametrize(("row", "column", "values", "task", "why"), DETECTED, ids=[str(case[2]) for case in DETECTED])
def test_the_task_is_seen_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict[str, Any], column: str, values: list[Any], task: str,
    why: str,
) -> None:  # fmt: skip
    path = jsonl(tmp_path, [row | {column: value} for value in values] * 5)
    data = read(path)
    assert data.task == task
    assert f"Task: {task} ({why} in {column!r}; data.task overrides)" in capsys.readouterr().out
    assert read(path, task=task).key == data.key
    assert "Task:" not in capsys.readouterr().out


def test_real_numbers_are_a_regression_and_whole_ones_if_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = read(put(tmp_path, csv([i / 4 for i in range(20)])))
    assert (data.task, data.label_names) == ("regression", ["score"])
    assert all_labels(data) == {f"a film {i}": i / 4 for i in range(20)}
    assert len(data.splits["validation"]) == 2
    assert "Validation: 2 of 20 rows split off, 10 %, data.split_seed=0" in capsys.readouterr().out
    assert labels(read(put(tmp_path, csv([i / 4 for i in range(20)])), split_seed=1)) != labels(data)
    whole = put(tmp_path, csv([1, 2, 3, 3] * 5), "b.csv")
    assert read(whole).task == "classification"
    forced = read(whole, task="regression", label_names=["stars"])
    assert (forced.label_names, all_labels(forced)["a film 1"]) == (["stars"], 2.0)
    assert len({read(whole, task=task).key for task in ("classification", "regression", "ordinal")}) == 3


def test_similar_looking_names_do_not_make_a_label_column_of_two(tmp_path: Path) -> None:
    table = pd.DataFrame({"sentence1": ["a"] * 9, "sentence2": ["b"] * 9, "score": [i / 8 for i in range(9)]})
    table.to_csv(tmp_path / "a.csv", index=False)
    assert read(tmp_path / "a.csv").task == "regression"
    data = read(tmp_path / "a.csv", task="feature_extraction")
    assert (data.label_names, data.text_columns) == ([], ("sentence1", "sentence2"))
    assert sorted(label for split in data.splits for label in data.splits[split]["label"]) == [i / 8 for i in range(9)]


NAMED = {"a film 0": {"joy", "anger"}, "a film 1": {"joy"}, "a film 2": set(), "a film 3": {"fear", "joy"}}
FORMS: list[tuple[str, list[Any], list[str] | None]] = [
    ("strings", ["joy, anger", "joy", "", "fear,joy"], None),
    ("semicolons", ["joy;anger", "joy", "", "fear; joy"], None),
    ("bars", ["joy|anger", "joy", "", "fear|joy"], ["fear", "joy", "anger"]),
    ("names", [["joy", "anger"], ["joy"], [], ["fear", "joy"]], None),
    ("twice", [["joy", "anger", "joy"], ["joy"], [], ["fear", "joy"]], None),
    ("numbers", [[2, 0], [2], [], [1, 2]], ["anger", "fear", "joy"]),
    ("numbers as text", ["2 | 0", "2", "", "1|2"], ["anger", "fear", "joy"]),
    ("indicators", [[1, 0, 1], [0, 0, 1], [0, 0, 0], [0, 1, 1]], ["anger", "fear", "joy"]),
    ("booleans", [[True, False, True], [False, False, True], [False] * 3, [False, True, True]],
     ["anger", "fear", "joy"]),
]  # fmt: skip


@pytest.mark.parametrize(("values", "names"), [form[1:] for form in FORMS], ids=[form[0] for form in FORMS])
def test_several_labels_in_every_form(tmp_path: Path, values: list[Any], names: list[str] | None) -> None:
    path = jsonl(tmp_path, [{"text": f"a film {i}", "emotions": value} for i, value in enumerate(values)])
    data = read(path, task="multilabel", label="emotions", text="text", label_names=names, validation=path)
    assert data.label_names == (names or ["anger", "fear", "joy"])
    assert (
        labels(data)
        == labels(data, "validation")
        == {text: [float(name in found) for name in data.label_names] for text, found in NAMED.items()}
    )
    tasks.Multilabel(data.label_names).see(list(data.splits["train"]["label"]))


def test_names_without_training_row_may_be_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = put(tmp_path, csv(["a, b", "b"] * 5, "label"))
    dev = put(tmp_path, csv(["c", "b, c", "a"], "label"), "dev.csv")
    with pytest.raises(UserError, match="no training row has: 'c' in 2 rows.* or list all labels as data.label_names"):
        read(train, task="multilabel", validation=dev)
    data = read(train, task="multilabel", validation=dev, label_names=["a", "b", "c"])
    assert list(data.splits["validation"]["label"]) == [[0, 0, 1], [0, 1, 1], [1, 0, 0]]
    out = capsys.readouterr().out
    assert "Labels in 'label': separated by ," in out
    assert "Labels without a training row: c" in out


def test_levels_are_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = read(put(tmp_path, csv([10, 8, 9, 9] * 5)), task="ordinal")
    assert (data.task, data.label_names, all_labels(data)["a film 1"]) == ("ordinal", ["8", "9", "10"], 0)
    assert "Levels: 8 < 9 < 10" in capsys.readouterr().out
    named = put(tmp_path, csv(["good", "bad", "fair"] * 5), "b.csv")
    assert all_labels(read(named, task="ordinal", label_names=["bad", "fair", "good"]))["a film 0"] == 2
    gap = put(tmp_path, csv([1, 2, 4, 5] * 5), "c.csv")
    filled = read(gap, task="ordinal", label_names=[1, 2, 3, 4, 5])
    assert (filled.label_names, all_labels(filled)["a film 2"]) == (["1", "2", "3", "4", "5"], 3)
    assert "Labels without a training row: 3" in capsys.readouterr().out


def test_tokens_and_tags_of_every_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["O", "B-LOC", "B-PER", "I-PER"]
    data = read(jsonl(tmp_path, WIKI * 5))
    assert (data.label_names, data.text_columns) == (names, ("tokens",))
    assert all_labels(data) == {"Ann Lee slept": [2, 3, 0], "Rome": [1]}
    assert data.splits["train"].column_names == ["tokens", "label"]
    numbered = [{"words": row["tokens"], "tags": [names.index(tag) for tag in row["ner_tags"]]} for row in WIKI]
    by_number = read(jsonl(tmp_path, numbered * 5, "b.jsonl"), label_names=names)
    assert by_number.key == data.key
    lines = "-DOCSTART- O\n\nAnn\tB-PER\nLee I-PER\nslept O\n\n \nRome B-LOC\r\n".replace("\t", " ")
    conll = put(tmp_path, (lines + "\n") * 5, "c.conll")
    assert read(conll).key == data.key
    wide = put(
        tmp_path,
        (lines.replace(" B-", "\tNNP\tB-").replace(" I-", "\tNNP\tI-").replace(" O", "\tX\tO") + "\n") * 5,
        "d.bio",
    )
    assert read(wide).key == data.key
    assert "of 3 columns the first is taken as the token, the last as its tag" in capsys.readouterr().out
    turned = read(conll, label_names=names[::-1])
    assert all_labels(turned)["Rome"] == [2]


@pytest.mark.parametrize("form", ["List", "list"])
def test_tag_names_come_from_the_features(tmp_path: Path, form: str) -> None:
    from datasets import ClassLabel, Dataset, Features, List, Value

    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    tags = ClassLabel(names=names)
    features = Features({"tokens": List(Value("string")), "ner_tags": List(tags)})
    rows = {"tokens": [["Ann", "Lee"], ["Rome"]] * 5, "ner_tags": [[1, 2], [3]] * 5}
    Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "train.parquet"))
    if form == "list":
        from kd import hub

        data = hub.load(
            "hub-x", str(tmp_path), None, {"train": None, "validation": None, "test": None}, None, None, None, None,
            0.1, 0, False, str(tmp_path / "cache"),
        )  # fmt: skip
    else:
        data = read(tmp_path / "train.parquet")
    assert data.label_names == names
    assert all_labels(data) == {"Ann Lee": [1, 2], "Rome": [3]}


def test_lone_inside_tags_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = read(
        jsonl(tmp_path, sentences(["I-PER", "I-PER", "O", "I-LOC"], 3) + sentences(["B-LOC", "I-PER", "O", "O"]))
    )
    assert labels(data)
    assert "7 I- tags follow no B- or I- of their type; each begins an entity" in capsys.readouterr().out


def test_a_plain_file_has_a_text_a_line(tmp_path: Path) -> None:
    data = read(put(tmp_path, "one, two\n\n" + "a line of text\n" * 20, "a.txt"), task="masked_lm")
    assert sorted(set(data.splits["train"]["text"]) | set(data.splits["validation"]["text"])) == [
        "a line of text",
        "one, two",
    ]
    assert sum(map(len, data.splits.values())) == 21


def test_text_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = put(tmp_path, "body\n" + "".join(f"a line of text {i}\n" for i in range(20)))
    keys = set()
    for task in ("masked_lm", "feature_extraction"):
        data = read(path, task=task)
        assert (data.task, data.label_names, data.text_columns) == (task, [], ("body",))
        assert {split: rows.column_names for split, rows in data.splits.items()} == {
            "train": ["text"], "validation": ["text"],
        }  # fmt: skip
        assert "Columns: text body, no label (guessed: data.text=body)" in capsys.readouterr().out
        keys.add(data.key)
    assert read(put(tmp_path, GOOD, "b.csv"), task="masked_lm").text_columns == ("review",)
    assert len(keys) == 2


def test_unlabelled_test_files_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for train, test, more in (
        (WIKI * 5, sentences([-1] * 4), {}),
        ([{"text": "a", "label": 0.5}, {"text": "b", "label": 1}], [{"text": "a", "label": None}], {}),
        ([{"text": "a", "label": 0.5}, {"text": "b", "label": 1}], [{"text": "a", "label": -1.0}] * 2, {}),
        ([{"text": "a", "label": ["x", "y"]}] * 5, [{"text": "a", "label": []}], {}),
    ):
        data = read(jsonl(tmp_path, train), test=jsonl(tmp_path, test, "test.jsonl"), **more)
        assert set(data.splits) == {"train", "validation"}
        assert "has no labels in the column" in capsys.readouterr().out


def test_rows_that_look_alike_when_joined_have_keys_of_their_own(tmp_path: Path) -> None:
    variants: list[list[dict[str, Any]]] = [
        [{"tokens": ["a b", "c"], "tags": ["O", "B-X"]}],
        [{"tokens": ["a", "b c"], "tags": ["O", "B-X"]}],
        [{"tokens": ["a", "b", "c"], "tags": ["O", "O", "B-X"]}],
        [{"tokens": ["a", "b", "c"], "tags": ["O", "B-X", "O"]}],
        [{"tokens": ["a"], "tags": ["O"]}, {"tokens": ["b", "c"], "tags": ["O", "B-X"]}],
        [{"tokens": ['a", "b', "c"], "tags": ["O", "B-X"]}],
    ]
    path = jsonl(tmp_path, WIKI, "dev.jsonl")
    names = ["O", "B-X", "B-PER", "I-PER", "B-LOC"]
    keys = [
        read(jsonl(tmp_path, rows), validation=path, label_names=names,
             **({"label": "tags", "text": "tokens"} if rows else {})).key
        for rows in variants
        if (path.write_text("".join(json.dumps({"tokens": r["tokens"], "tags": r["ner_tags"]}) + "\n" for r in WIKI)))
    ]  # fmt: skip
    assert len(set(keys)) == len(variants)


TAGGED = {"tokens": ["Ann", "Lee"], "ner_tags": ["B-PER", "O"]}
ONE = {"text": "a", "label": ["x", "y"]}
REFUSED: list[tuple[str, Any, str, dict[str, Any]]] = [
    ("a.csv", csv(["joy", "anger"] * 3), "between several , or ; or | is expected, and none", {"task": "multilabel"}),
    ("a.csv", csv(["joy", "anger", "anger, joy"] * 3), "'anger, joy' may be one label or several", {}),
    ("a.csv", csv(["a, b", "a|b"]), "have , and | in them ('a, b'; 'a|b')", {"task": "multilabel"}),
    ("a.csv", csv(["a, b", "a,"]), "line 3: one of the labels 'a,' in the column", {"task": "multilabel"}),
    ("a.csv", csv(["['a', 'b']"]), "lists that were written as text", {"task": "multilabel"}),
    ("a.csv", csv(["a, b", "a, c"]), "lacks the label 'c'", {"task": "multilabel", "label_names": ["a", "b"]}),
    ("a.jsonl", [ONE, {"text": "b", "label": ["x", 1]}], "line 2: the labels ['x', 1] in the column 'label' mix", {}),
    ("a.jsonl", [ONE, {"text": "b", "label": [1, 2]}], "line 2: the labels [1, 2] in the column 'label' mix", {}),
    ("a.jsonl", [ONE, {"text": "b", "label": ["x", " "]}], "line 2: one of the labels ['x', ''] in the column", {}),
    ("a.jsonl", [TAGGED | {"ner_tags": [[1], 0]}], "the tags in the column 'ner_tags' are numbers, such as [1]", {}),
    ("a.jsonl", [{"text": "b", "label": [0.5, 2]}], "mix kinds", {}),
    ("a.jsonl", [{"text": "b", "label": [0, 3]}, {"text": "b", "label": [1]}],
     "line 1: the label 3 in the column 'label' is out of range: data.label_names has 2 names, for 0 to 1",
     {"label_names": ["a", "b"]}),
    ("a.jsonl", [{"text": "b", "label": [0, 1, 1]}], "rows of 3 zeros and ones, one for each label, and nothing", {}),
    ("a.jsonl", [{"text": "b", "label": [0, 1, 1]}], "data.label_names has 2 names", {"label_names": ["a", "b"]}),
    ("a.jsonl", [ONE, {"text": "b", "label": "x"}], "line 2: the label column 'label' holds 'x'", {}),
    ("a.csv", csv([0.5, "much", 2]), "line 3: the target column 'score' holds 'much', which is no number",
     {"task": "regression"}),
    ("a.csv", csv([0.5, "nan"]), "line 3: the target column 'score' holds 'nan'", {"task": "regression"}),
    ("a.csv", csv([0.5, "-inf"]), "holds '-inf'", {"task": "regression"}),
    ("a.csv", csv([0.5, "1e999"]), "holds '1e999'", {"task": "regression"}),
    ("a.csv", csv(["0,5"]), "holds '0,5'", {"task": "regression"}),
    ("a.csv", csv([*range(9), "many"]), "data.task=regression for numbers", {}),
    ("a.csv", csv([0.5, 1]), "one number, and so one name", {"task": "regression", "label_names": ["a", "b"]}),
    ("a.csv", csv([1, 2, 4, 5] * 3), "are 1, 2, 4, 5; no training row has 3. If the scale has that level all the same, "
     "list all of them: data.label_names=[1,2,3,4,5]", {"task": "ordinal"}),
    ("a.csv", csv(["bad", "good"] * 3), "are names (bad, good), and alphabetical order is no", {"task": "ordinal"}),
    ("a.csv", csv([1, 2, 4] * 3), "lacks the label '4'", {"task": "ordinal", "label_names": [1, 2, 3]}),
    ("a.csv", csv([1.5, 2] * 3), "neither classes nor levels", {"task": "ordinal"}),
    ("a.csv", csv([1] * 3), "every row has the level '1'", {"task": "ordinal"}),
    ("a.jsonl", [TAGGED, TAGGED | {"ner_tags": ["O"]}],
     "line 2: the row has 2 tokens (column 'tokens'), but 1 tag (column 'ner_tags'). Each", {}),
    ("a.jsonl", [TAGGED, TAGGED | {"ner_tags": ["O", "PER"]}],
     "line 2, token 2: the tag 'PER' is not of the BIO scheme, which has O, B-x and I-x. Correct it", {}),
    ("a.jsonl", [TAGGED | {"ner_tags": ["S-PER", "O"]}], "looks like IOBES or BILOU", {}),
    ("a.jsonl", [TAGGED | {"ner_tags": [1, 0]}], "the tags in the column 'ner_tags' are numbers, such as 1", {}),
    ("a.jsonl", [TAGGED | {"ner_tags": [2, 0]}], "the tag 2 in the column 'ner_tags' is no name and no whole number "
     "from 0 to 1", {"label_names": ["O", "B-PER"]}),
    ("a.jsonl", [TAGGED], "lacks the tag 'B-PER'", {"label_names": ["O", "B-PRE"]}),
    ("a.jsonl", [TAGGED | {"ner_tags": ["O", "O"]}], "every token has the tag 'O'", {}),
    ("a.jsonl", [TAGGED | {"tokens": [1, 2]}], "1 in the column 'tokens' is no token", {}),
    ("a.jsonl", [TAGGED | {"tokens": ["Ann", "\ud800"]}], "line 1: the text has half of a surrogate pair", {}),
    ("a.csv", "tokens,tags\na b,O O\n", "the column 'tokens' holds str values", {"task": "token_classification"}),
    ("a.conll", "Ann B-PER\nLee\n", "line 2: 'Lee' is no token with its tag", {}),
    ("a.conll", "Ann\n", "line 1: 'Ann' is no token with its tag", {}),
    ("a.csv", "body\nsome text\n", "a.csv has the column body alone, and so no labels", {}),
    ("a.csv", GOOD, "data.task=masked_lm has no labels. Leave it out", {"task": "masked_lm", "label": "stars"}),
    ("a.csv", GOOD, "has no labels. Leave it out", {"task": "masked_lm", "label_names": ["good", "bad"]}),
    ("a.csv", "premise,hypothesis\na,b\n", "are two: data.text=premise", {"task": "masked_lm"}),
    ("a.csv", GOOD, "takes a label for pairs of texts only", {"task": "feature_extraction", "label": "stars",
                                                             "text": "review"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "says", "settings"), REFUSED, ids=[case[2][:50] for case in REFUSED])
def test_what_does_not_fit_is_named_in_one_paragraph(
    tmp_path: Path, name: str, content: Any, says: str, settings: dict[str, Any]
) -> None:
    path = jsonl(tmp_path, content, name) if isinstance(content, list) else put(tmp_path, content, name)
    with pytest.raises(UserError) as caught:
        read(path, **settings)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_in_another_form_than_the_training_rows_are_refused(tmp_path: Path) -> None:
    train = jsonl(tmp_path, [{"text": "b", "label": [0, 1, 1]}] * 3)
    dev = jsonl(tmp_path, [{"text": "b", "label": [0, 2]}], "dev.jsonl")
    text = jsonl(tmp_path, [{"text": "b", "label": "a, b"}], "text.jsonl")
    with pytest.raises(UserError, match="the labels 'a, b' are text, and those of train are lists"):
        read(train, validation=text, label_names=["a", "b", "c"])
    with pytest.raises(UserError, match=r"dev.jsonl, line 1: \[0, 2\] is no row of 3 zeros and ones"):
        read(train, validation=dev, label_names=["a", "b", "c"])


def test_a_wrong_name_is_answered_without_torch() -> None:
    code = "import sys, kd.check, kd.command_line as c\ntry: kd.check.check_values(c.compose(sys.argv[1:]))\n"
    code += "except ValueError as e: print(e)\nfinally: print('torch' in sys.modules)"
    lines = ["data=files", "data.task=regresion"]
    done = subprocess.run([sys.executable, "-c", code, *lines], capture_output=True, text=True, cwd=ROOT)
    said, torch = done.stdout.splitlines()
    assert "data.task=regresion: Did you mean 'regression'? Known: classification, multilabel" in said
    assert torch == "False"
    with pytest.raises(UserError, match="Did you mean 'ordinal'"):
        check_values(compose(["data=sst5", "data.task=ordnal"]))


def test_own_data_are_checked_for_their_task_before_loading(tmp_path: Path) -> None:
    path = put(tmp_path, csv([1, 2, 4] * 5))
    with pytest.raises(UserError, match="no training row has 3"):
        check_before_loading(compose(["data=files", f"data.train={path}", "data.task=ordinal"]))


def test_a_task_that_the_labels_are_not_for_is_refused() -> None:
    data = demo.generate(rows=8, scored_rows=8, seed=0, noise=0.0)
    assert isinstance(make_task(OmegaConf.create({"task": "ordinal"}), data), tasks.Ordinal)
    with pytest.raises(UserError, match="needs a real number a row, and data=demo has a class there: take data.task="
                       "classification or ordinal"):  # fmt: skip
        make_task(OmegaConf.create({"task": "regression"}), data)
    check_fit("masked_lm", "demo", data.splits["train"])
    with pytest.raises(UserError, match="needs a class a row, and data=demo has no label there."):
        check_fit("ordinal", "demo", data.splits["train"].remove_columns("label"))
    with pytest.raises(UserError, match="data.task=None"):
        make_task(OmegaConf.create({"task": None}), data)


@pytest.mark.slow
@pytest.mark.skipif(not STORE.is_dir(), reason="the store is not beside this checkout")
@pytest.mark.parametrize(
    ("values", "task", "metric"),
    [([0.5, 1.25, 3], "regression", "pearson"), (["joy, anger", "joy", ""], "multilabel", "micro_f1")],
)
def test_from_a_csv_file_to_a_report(tmp_path: Path, values: list[Any], task: str, metric: str) -> None:
    put(tmp_path, csv(values * 40))
    told = [] if task == "regression" else [f"data.task={task}"]
    done = command(tmp_path, str(ROOT / "train.py"), "data=files", "data.train=reviews.csv", *told, *SHORT)
    assert done.returncode == 0, done.stderr
    assert "Validation: 12 of 120 rows split off" in done.stdout
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert metric in report["models"]["student"]["validation"]
    stored = json.loads((tmp_path / "run" / "student" / "kd.json").read_text())["task"]
    assert stored["kind"].lower() == task
