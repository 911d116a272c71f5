"""Vectors of texts: the figures once more in numpy, the models of every family, a fit, and what is refused."""

from __future__ import annotations

import csv
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import train
from conftest import OWN, architecture
from datasets import Dataset
from omegaconf import OmegaConf
from test_lit_module import settings
from test_quantization import settings as quant_settings
from torch import Tensor
from torch.autograd import gradcheck

import kd
from kd import artefact, demo, heads, models, quantization, report
from kd.build import build_losses
from kd.cli import write_csv
from kd.command_line import compose
from kd.contradictions import contradictions
from kd.datamodule import TextDataModule
from kd.errors import UserError
from kd.fit import fit
from kd.lit_module import FrozenTeacher
from kd.losses import HardLabelLoss, Loss, SoftTargetLoss, VectorCosineLoss, VectorDistanceLoss
from kd.models import load_model, random_model
from kd.pair import Pair, make_student
from kd.sources import TextData
from kd.tables import Table
from kd.tasks import Classification, FeatureExtraction, restored
from kd.tasks.features import MeanCosine
from kd.teacher import check_labels, check_score

FAMILIES = list(OWN)


def drawn(rows: int = 30, width: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator) + 0.7


def cosines(one: Tensor, two: Tensor) -> np.ndarray[Any, Any]:
    a, b = one.double().numpy(), two.double().numpy()
    found: np.ndarray[Any, Any] = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return found


def ranks(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """From 1, the mean rank for equal values."""
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])


def test_the_score_is_the_mean_cosine_however_the_rows_are_dealt_out() -> None:
    student, teacher = drawn(seed=1), drawn(seed=2)
    for parts in ([30], [7, 3, 20]):
        metrics = FeatureExtraction().metrics()
        for one, two in zip(torch.split(student, parts), torch.split(teacher, parts), strict=True):
            metrics.update(one, two)
        assert float(metrics.compute()["cosine"]) == pytest.approx(cosines(student, teacher).mean(), abs=1e-6)
    metric = MeanCosine()
    metric.update(3 * teacher, teacher)
    assert 1 - 1e-6 < float(metric.compute()) <= 1


def test_no_constant_vector_is_better_than_chance() -> None:
    teacher = drawn()
    chance, _ = FeatureExtraction().chance(teacher)
    directions = teacher.numpy() / np.linalg.norm(teacher.numpy(), axis=-1, keepdims=True)
    best = np.linalg.norm(directions.mean(0))
    assert best <= chance <= best + 2e-4
    for seed in range(200):
        constant = drawn(1, seed=seed).expand_as(teacher)
        assert cosines(constant, teacher).mean() <= chance
    mean = torch.from_numpy(directions.mean(0)).expand_as(teacher)
    assert cosines(mean, teacher).mean() == pytest.approx(best)


def test_the_gate_stops_a_teacher_whose_vectors_are_all_one() -> None:
    task = FeatureExtraction()
    for teacher, passes in ((drawn(), True), (drawn(1).expand(30, 6).clone(), False)):
        entry = report.Entry("teacher", None, "teacher", 1, 1, logits={"validation": teacher})
        metrics = task.metrics()
        metrics.update(teacher, teacher)
        entry.figures["validation"] = {name: float(value) for name, value in metrics.compute().items()}
        assert check_score(entry, teacher, task, gate=False) is passes
        if not passes:
            with pytest.raises(UserError, match=r"one vector for all texts gives 1\.0000"):
                check_score(entry, teacher, task, gate=True)


def test_agreement_is_that_of_nearest_neighbours() -> None:
    task = FeatureExtraction()
    student, teacher = drawn(seed=1), drawn(seed=1) + 0.2 * drawn(seed=2)
    nearest = []
    for vectors in (student, teacher):
        near = np.array([cosines(vector.expand_as(vectors), vectors) for vector in vectors])
        np.fill_diagonal(near, -9)
        nearest.append(near.argmax(-1))
        assert task.answers(vectors, {}).tolist() == nearest[-1].tolist()
    share = task.agreement(*(task.answers(vectors, {}) for vectors in (student, teacher)))
    assert share == pytest.approx((nearest[0] == nearest[1]).mean())
    assert 0.1 < share < 1


def pairs(label_names: list[str], labels: list[Any]) -> tuple[FeatureExtraction, TextData]:
    rows = Dataset.from_dict({"text": ["a", "b", "c"], "text_pair": ["x", "y", "z"], "label": labels})
    data = TextData("d", {"train": rows, "validation": rows}, label_names, "key", text_columns=("one", "two"))
    task = FeatureExtraction(label_names)
    return task, task.prepare(data)


def test_pairs_are_two_texts_each_and_their_labels_are_compared_with_the_cosine() -> None:
    task, data = pairs([], [0.2, 0.9, 0.9])
    assert list(data.splits["validation"]["text"]) == ["a", "x", "b", "y", "c", "z"]
    assert (data.text_columns, data.key == "key") == (("text",), False)
    task.similarities["test"] = torch.tensor([5, 1, 2, 2, 4, 3.5, 0, 2, 1, 0.5])
    vectors = drawn(20)
    found = task.extra("test", vectors)["spearman"]
    near = cosines(vectors[0::2], vectors[1::2])
    expected = np.corrcoef(ranks(near), ranks(task.similarities["test"].numpy()))[0, 1]
    assert found == pytest.approx(expected, abs=1e-5)
    assert task.extra("train_b", vectors) == {}
    said = task.about({"teacher": {"validation": {"spearman": 0.5}, "test": {"spearman": 0.25}}})
    assert said["Spearman of test pairs"] == "teacher 0.2500"


def test_labels_that_have_no_order_are_compared_with_nothing() -> None:
    assert pairs(["no", "yes"], [0, 1, 1])[0].similarities["train"].tolist() == [0, 1, 1]
    assert pairs(["a", "b", "c"], [0, 1, 2])[0].similarities == {}
    single = TextData("d", {"train": Dataset.from_dict({"text": ["a"], "label": [0]})}, ["x", "y"], "key")
    task = FeatureExtraction(["x", "y"])
    assert task.prepare(single).splits["train"].column_names == ["text"]
    assert (task.outputs, task.similarities) == ([], {})


def every_loss() -> list[Loss]:
    losses: list[Loss] = [VectorCosineLoss(1.0), VectorDistanceLoss(1.0), SoftTargetLoss(1.0, 4.0)]
    for loss in losses:
        loss.setup(None, None, FeatureExtraction())
    return losses


def test_losses_have_the_hand_computed_values() -> None:
    student, teacher = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[4.0, 3.0], [0.0, 2.0]])
    # cosines 24/25 and 0; squared differences (1 + 1)/2 and (1 + 4)/2
    for loss, expected in zip(every_loss(), (1.04, 3.5, 1.04), strict=True):
        value, count = loss({"logits": student}, {"logits": teacher}, {})
        assert float(value) == pytest.approx(expected, abs=1e-6)
        assert int(count) == 2


@pytest.mark.parametrize("loss", every_loss(), ids=lambda loss: type(loss).__name__)
def test_losses_are_0_at_the_teacher_and_right_in_their_gradients(loss: Loss) -> None:
    student, teacher = (drawn(4, 5, seed).double() for seed in (1, 2))
    value, _ = loss({"logits": teacher}, {"logits": teacher}, {})
    assert float(value) == pytest.approx(0, abs=1e-9)
    assert gradcheck(lambda s: loss({"logits": s}, {"logits": teacher}, {})[0], (student.requires_grad_(),))


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["method=pkd"], "method.hard: this task has no labels to learn from. Take method=embed"),
        (["method=hard"], "no labels to learn from"),
        (["method=logit", "~method.hard"], None),
        (["method=embed"], None),
        (["method=embed", "~method.distance"], None),
    ],
)
def test_methods_fit_the_task_or_are_refused(lines: list[str], says: str | None) -> None:
    cfg = compose(["teacher=tiny_demo", "student=tiny_demo", "data=demo", "data.task=feature_extraction", *lines])
    if says is None:
        assert all(loss.student_signals == ("logits",) for loss in build_losses(cfg, FeatureExtraction()).values())
        return
    with pytest.raises(UserError, match=says):
        build_losses(cfg, FeatureExtraction())


def test_vector_losses_need_vectors() -> None:
    with pytest.raises(UserError, match=r"set data\.task=feature_extraction"):
        VectorCosineLoss(1.0).setup(None, None, Classification(["a", "b"]))
    with pytest.raises(UserError, match="no labels"):
        HardLabelLoss(1.0).setup(None, None, FeatureExtraction())


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["teacher=tiny_demo"], "teacher.fine_tune.when=always: data.task=feature_extraction has no labels"),
        (["teacher=tiny_demo", "teacher.fine_tune.when=never"], None),
        (["teacher=minilm_l6", "teacher.pooling=attention"], "a teacher learns nothing"),
        (["teacher=minilm_l6", "student.pooling=attention"], None),
    ],
)
def test_a_teacher_of_vectors_learns_nothing(lines: list[str], says: str | None) -> None:
    found = contradictions(compose(["data=demo", "student=tiny_demo", "data.task=feature_extraction", *lines]))
    assert re.search(says, "\n".join(found)) if says else found == []


def test_overrides_of_a_classifiers_dropout_are_refused() -> None:
    from kd.check import check_values

    lines = ["student=distilbert_tiny", "data.task=feature_extraction", "student.overrides.seq_classif_dropout=0.4"]
    with pytest.raises(UserError, match="seq_classif_dropout: it belongs to the head"):
        check_values(compose(lines))
    check_values(compose([*lines[:2], "student.overrides.dropout=0.4"]))


def inputs() -> dict[str, Tensor]:
    ids = torch.randint(5, 500, (3, 12), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": (torch.arange(12) < torch.tensor([[12], [5], [2]])).long()}


def teacher_of(family: str, width: int = 48, directory: Path | None = None) -> tuple[FeatureExtraction, Any]:
    """From an encoder's checkpoint, as a run takes it."""
    task = FeatureExtraction()
    shape = architecture(2, width, model_type=family)
    if directory is None:
        return task, random_model(shape, task)
    torch.manual_seed(1)
    random_model(shape, Classification(demo.LABELS)).base_model.save_pretrained(directory)
    loaded = load_model(directory, task)
    assert loaded.has_head
    check_labels(loaded.model, task, gate=True)
    return task, loaded.model


@pytest.mark.parametrize("how", [None, "cls", "mean", "max", "attention"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_student_gives_vectors_of_its_teachers_width(family: str, how: str | None, tmp_path: Path) -> None:
    task, teacher = teacher_of(family, 48, tmp_path / "teacher")
    plain = teacher.base_model(**inputs()).last_hidden_state
    expected = torch.stack([plain[i, :n].mean(0) for i, n in enumerate((12, 5, 2))])
    torch.testing.assert_close(teacher(**inputs()).logits, expected, atol=1e-5, rtol=0)
    task.follow(teacher)
    pooled = {"pooling": how} if how else {}
    for width in (48, 32):
        student = random_model(architecture(2, width, model_type=family) | pooled, task)
        assert student.config.kd_pooling == (how or "mean")
        assert student(**inputs()).logits.shape == (3, 48)
        assert ("output.weight" in student.state_dict()) == (width == 32)
        artefact.save_float(tmp_path / "student", student, demo.tokenizer(), 32, ("text",), task)
        loaded = kd.load(tmp_path / "student")
        assert isinstance(loaded.task, FeatureExtraction)
        assert torch.equal(loaded.model(**inputs()).logits, student(**inputs()).logits)
        (row,) = loaded.predict("the soup was good")
        assert torch.equal(torch.tensor(row["vector"]), loaded.logits(["the soup was good"])[0])
        assert row["label"].endswith("48 numbers")
        again = load_model(tmp_path / "student", task, how)
        assert again.has_head
        assert torch.equal(again.model(**inputs()).logits, student(**inputs()).logits)
        converted, summary = quantization.convert(student, quant_settings("int8"))
        artefact.save_quantized(
            tmp_path / "q", converted, demo.tokenizer(), 32, quant_settings("int8"), summary, ("text",), task
        )
        assert torch.equal(kd.load(tmp_path / "q").model(**inputs()).logits, converted(**inputs()).logits)


@pytest.mark.parametrize("how", [None, "max"])
def test_a_student_of_vectors_of_another_width_gets_a_new_map_and_keeps_its_pooling(
    how: str | None, tmp_path: Path
) -> None:
    task = FeatureExtraction()
    task.width = 48
    made = random_model(architecture(2, 32) | {"pooling": "max"}, task)
    made.save_pretrained(tmp_path)
    task.width = 64
    loaded = load_model(tmp_path, task, how)
    assert (loaded.has_head, loaded.model.config.kd_pooling, loaded.model.config.kd_vector) == (False, "max", 64)
    assert loaded.model.output.weight.shape == (64, 32)
    kept, own = (m.base_model.state_dict() for m in (made, loaded.model))
    assert all(torch.equal(kept[name], own[name]) for name in kept)
    classes = load_model(tmp_path, Classification(demo.LABELS))  # and as a classifier it has no head
    assert not classes.has_head
    assert type(classes.model).__name__ == "BertForSequenceClassification"
    assert not {"kd_pooling", "kd_vector"} & set(classes.model.config.to_dict())


def test_make_student_follows_the_teacher_that_is_there(tmp_path: Path) -> None:
    """Its vectors may be wider than the model itself, and so are those of its layers."""
    task = FeatureExtraction()
    task.width = 80
    teacher = random_model(architecture(4, 128), task)
    task = FeatureExtraction()
    pair = Pair({"student": None}, {"student": demo.tokenizer()})
    small = ["data=demo", "teacher=tiny_demo", "data.task=feature_extraction"]
    student = make_student(compose([*small, "student=tiny_demo"]), pair, teacher, task)
    assert student.output.weight.shape == (80, 96)
    layers = make_student(compose([*small, "student=layers", "student.num_layers=2"]), pair, teacher, task)
    assert layers(**inputs()).logits.shape == (3, 80)
    assert torch.equal(layers.output.weight, teacher.output.weight)


def test_a_fit_is_validated_and_reported_against_the_teacher(data: TextDataModule, tmp_path: Path) -> None:
    task, teacher = teacher_of("bert", 48)
    task.follow(teacher)
    torch.manual_seed(3)
    student = random_model(architecture(2, 32), task)
    losses: dict[str, Loss] = {"cosine": VectorCosineLoss(1.0), "distance": VectorDistanceLoss(1.0)}
    for loss in losses.values():
        loss.setup(student.config, teacher.config, task)
    entries = [report.Entry("teacher", teacher, "teacher", 1, 1), report.Entry("student", student, "student", 1, 1)]
    report.score(entries, data, task, torch.device("cpu"))
    before = entries[1].figures["validation"]["cosine"]
    frozen = FrozenTeacher(teacher, ("logits",))
    fitted = fit(student, task, losses, frozen, data, settings(60), tmp_path, "key", "test")
    entries[1] = report.Entry("student", fitted.module.student.eval(), "student", 1, 1)
    report.score(entries, data, task, torch.device("cpu"))
    vectors = [entry.logits["validation"] for entry in entries]
    assert entries[1].figures["validation"]["cosine"] == pytest.approx(cosines(*vectors).mean(), abs=1e-5)
    assert fitted.best_score == pytest.approx(entries[1].figures["validation"]["cosine"], abs=1e-4)
    assert entries[0].figures["validation"]["cosine"] == pytest.approx(1, abs=1e-6)
    assert fitted.best_score > max(0.5, before)
    assert entries[0].figures["validation_agreement"] == 1


def test_a_task_comes_back_and_a_prediction_reads_well(capsys: pytest.CaptureFixture[str]) -> None:
    task = restored(json.loads(json.dumps(FeatureExtraction(["a"]).stored())))
    assert isinstance(task, FeatureExtraction)
    found = task.describe(torch.tensor([[0.25, -1.0, 3.0, 4.0]]), {})
    assert found == [{"label": "[0.2500, -1.0000, 3.0000, ...] 4 numbers", "vector": [0.25, -1.0, 3.0, 4.0]}]
    write_csv(Table("t.csv", "line", {"text": ["one"]}, [2], {}), found)
    (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert json.loads(row["vector"]) == found[0]["vector"]
    assert set(row) == {"text", "vector"}


def test_the_card_says_what_the_vector_is() -> None:
    task, teacher = teacher_of("bert", 48)
    assert heads.described(teacher, task) == {
        "auto": "AutoModel", "pipeline": "feature-extraction", "own": "the mean of the last states of all real tokens",
    }  # fmt: skip
    task.width = 80
    own = heads.described(random_model(architecture(2, 32) | {"pooling": "cls"}, task), task)["own"]
    assert own == "the first token's state, and a linear layer to 80 numbers"


@pytest.mark.slow
def test_a_run_on_pairs_reports_spearman_of_every_model(tmp_path: Path) -> None:
    """A student of a teacher with random weights, from the command line to the artefacts."""
    draw = random.Random(0)
    rows = [(demo.review(draw), demo.review(draw)) for _ in range(120)]
    lines = ["text\ttext_pair\tlabel", *(f"{a}\t{b}\t{1.0 if p == q else 0.0}" for (a, p), (b, q) in rows)]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines))
    task = FeatureExtraction()
    random_model(architecture(2, 48), task).save_pretrained(tmp_path / "teacher")
    demo.tokenizer().save_pretrained(tmp_path / "teacher")
    shape = [f"teacher.architecture.{key}={value}" for key, value in architecture(2, 48).items() if key != "model_type"]
    done = train(
        tmp_path, "data=files", "data.train=pairs.tsv", "data.text=[text,text_pair]", "data.label=label",
        "data.task=feature_extraction", "data.max_length=32", "teacher=tiny_demo", "teacher.fine_tune.when=never",
        f"teacher.weights={tmp_path / 'teacher'}", *shape, "student=tiny_demo", "method=embed", "quant=int8_qat",
        "trainer.max_epochs=1", "logger=csv", "report.measure=false", "hydra.run.dir=run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run" / "report.json").read_text())
    assert set(found["models"]) == {"teacher", "student", "student-int8_qat"}
    for figures in found["models"].values():
        assert -1 <= figures["validation"]["spearman"] <= 1
    assert "Spearman of validation pairs: teacher" in (tmp_path / "run" / "report.md").read_text()
    loaded = kd.load(tmp_path / "run" / "student-int8_qat")
    assert len(loaded.predict("the soup was good")[0]["vector"]) == 48
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").teacher.pooling is None
    assert models.parameter_count(kd.load(tmp_path / "run" / "student").model) > 0


def test_labels_of_any_shape_are_left_out() -> None:
    rows = Dataset.from_dict({"tokens": [["a", "b"], ["c"]], "label": [[0, 1], [0]]})
    data = TextData("words", {"train": rows}, ["O", "B-x"], "key")
    bare = FeatureExtraction().prepare(data)
    assert bare.splits["train"].column_names == ["tokens"]
    assert bare.key != data.key
