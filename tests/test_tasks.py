"""What each task computes, against numbers worked out otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import model
from torch import Tensor
from torch.autograd import gradcheck

from kd import artefact, demo, models
from kd.errors import UserError
from kd.report import Entry, score
from kd.tasks import Classification, Decision, Multilabel, Ordinal, Regression, Task, restored
from kd.tasks.ordinal import above, levels

STUDENT = [[1, 2, 0.5], [0.2, -0.3, 1.5]]  # V1 of the vectors in test_losses.py
TEACHER = [[2, 1, 0], [0, 0, 3]]
LEVELS = ["bad", "poor", "fair", "good"]
TASKS: list[Task] = [
    Classification(["a", "b", "c"]), Multilabel(["a", "b", "c"]), Regression(["valence"]), Ordinal(LEVELS),
]  # fmt: skip


def drawn(task: Task, rows: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and labels of the task's kind."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, len(task.outputs), generator=generator)
    if isinstance(task, Multilabel):
        return logits, (torch.rand(rows, 3, generator=generator) < 0.4).float()
    if isinstance(task, Regression):
        return logits, torch.randn(rows, generator=generator)
    return logits, torch.randint(len(task.label_names), (rows,), generator=generator)


def scores(task: Task, decision: Decision | None, logits: Tensor, labels: Tensor) -> dict[str, float]:
    metrics = task.metrics(decision)
    metrics.update(logits, labels)
    return {name: float(value) for name, value in metrics.compute().items()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_binary_kl_has_the_hand_computed_values(dtype: torch.dtype, tolerance: float) -> None:
    student, teacher = torch.tensor(STUDENT, dtype=dtype), torch.tensor(TEACHER, dtype=dtype)
    for temperature, expected in ((1.0, 0.04642586), (2.0, 0.22957959 / 3)):  # the second: T² times 0.01913163
        value, rows = Multilabel(["a", "b", "c"]).divergence(student, teacher, temperature)
        assert float(value / rows) == pytest.approx(expected, abs=tolerance)


def test_soft_thresholds_have_the_hand_computed_value() -> None:
    """Soft binary cross-entropy is binary KL and the teacher's entropy."""
    student, teacher = (torch.tensor([row], dtype=torch.float64) for row in ([2, 0, -1], [1, 0.5, -2]))
    p = teacher.sigmoid()
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
    kl, rows = Ordinal(LEVELS).divergence(student, teacher, 1.0)
    assert float(kl + entropy.mean()) == pytest.approx(0.59680755, abs=1e-8)
    assert int(rows) == 1


def test_binary_kl_stays_finite_for_any_logits() -> None:
    student = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    loss, _ = Multilabel(["a", "b"]).divergence(student, torch.tensor([[200.0, -200.0]]), 1.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_divergence_is_0_for_the_teacher_itself_and_right_in_its_gradient(task: Task) -> None:
    logits, labels = drawn(task, 5)
    value, count = task.divergence(logits, logits, 2.0)
    assert float(value) == pytest.approx(0, abs=1e-5)
    assert int(count) == 5
    student, teacher = (drawn(task, 4, seed)[0].double().requires_grad_(seed == 1) for seed in (1, 2))
    assert gradcheck(lambda s: task.divergence(s, teacher.detach(), 2.0)[0], (student,))
    assert gradcheck(lambda s: task.label_loss(s, labels[:4])[0], (student,))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_losses_are_sums_over_rows(task: Task) -> None:
    """So that the mean over a global batch is the same, however it was dealt out to ranks and accumulated batches."""
    (logits, labels), teacher = drawn(task), drawn(task, seed=1)[0]
    for parts in ([40], [7, 20, 13]):
        label, soft, rows = 0.0, 0.0, 0
        for one, two, three in zip(*(torch.split(one, parts) for one in (logits, labels, teacher)), strict=True):
            value, count = task.label_loss(one, two)
            label, rows = label + float(value), rows + int(count)
            soft += float(task.divergence(one, three, 2.0)[0])
        if parts == [40]:
            whole = label, soft
        assert (label, soft) == pytest.approx(whole, rel=1e-5)
        assert rows == 40


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_a_task_comes_back_from_what_an_artefact_stores(task: Task) -> None:
    back = restored(json.loads(json.dumps(task.stored())))
    assert type(back) is type(task)
    assert (back.label_names, back.outputs) == (task.label_names, task.outputs)


def test_multilabel_f1_is_the_best_over_thresholds() -> None:
    task = Multilabel(["a", "b", "c"])
    logits, labels = drawn(task, 60)
    probabilities, real = logits.sigmoid().numpy(), labels.numpy() > 0

    def micro(threshold: float) -> float:
        guessed = probabilities > np.float32(threshold)
        return float(2 * (guessed & real).sum() / (guessed.sum() + real.sum()))

    best = max((i / 100 for i in range(1, 100)), key=micro)
    assert task.decide(logits, labels) == {"threshold": best}
    found = scores(task, None, logits, labels)
    assert found["micro_f1"] == pytest.approx(micro(best))
    guessed = probabilities > np.float32(best)
    each = [2 * (guessed[:, c] & real[:, c]).sum() / (guessed[:, c].sum() + real[:, c].sum()) for c in range(3)]
    assert found["macro_f1"] == pytest.approx(float(np.mean(each)))
    assert scores(task, {"threshold": 0.5}, logits, labels)["micro_f1"] == pytest.approx(micro(0.5))


def test_multilabel_chance_is_the_best_answer_without_a_text() -> None:
    labels = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1]])
    chance, meaning = Multilabel(["a", "b", "c"]).chance(labels)
    assert chance == pytest.approx(2 * 5 / (8 + 6))  # always a and b: 5 of 8 guesses are right, 6 labels are real
    assert "2 commonest" in meaning


def test_ordinal_answers_are_consistent_in_rank() -> None:
    logits = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    passed = above(logits)
    assert bool((passed.diff(dim=-1) <= 0).all())
    rows = Ordinal(LEVELS).describe(logits, {})
    for row, level in zip(rows, levels(logits).tolist(), strict=True):
        assert row["label"] == LEVELS[level]
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert min(row["probabilities"].values()) >= 0
    assert levels(torch.tensor([[9.0, 9.0, 9.0], [-9.0, 9.0, 9.0], [9.0, -9.0, 9.0]])).tolist() == [3, 0, 1]


def test_ordinal_label_loss_asks_only_the_thresholds_that_are_reached() -> None:
    """CORN: of level 1 in 0 to 3, "above 0" is true, "above 1" false, "above 2" is not asked."""
    logits = torch.tensor([[0.3, -0.7, 5.0]], dtype=torch.float64)
    value, _ = Ordinal(LEVELS).label_loss(logits, torch.tensor([1]))
    expected = (np.log1p(np.exp(-0.3)) + np.log1p(np.exp(-0.7))) / 3
    assert float(value) == pytest.approx(expected, abs=1e-9)


def test_a_regression_head_starts_where_the_targets_are() -> None:
    task = Regression(["valence"])
    task.see([2.0, 4.0, 3.0, 3.0])
    assert task.mean == 3.0
    assert task.scale == pytest.approx(0.5**0.5)
    torch.manual_seed(0)
    made = models.random_model(
        {"model_type": "bert", "num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2,
         "intermediate_size": 32, "vocab_size": 512, "max_position_embeddings": 64}, task,
    )  # fmt: skip
    guess = made(input_ids=torch.tensor([[2, 9, 8, 3]])).logits
    assert float(guess.detach()) == pytest.approx(3.0, abs=0.3)
    value, _ = task.label_loss(torch.tensor([[4.0]]), torch.tensor([3.0]))
    assert float(value) == pytest.approx(1 / 0.5)  # one unit off, in variances
    with pytest.raises(UserError, match="the same target 2"):
        task.see([2.0, 2.0])


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_chance_is_not_beaten_by_noise_and_is_by_knowledge(task: Task) -> None:
    """The interval of the score decides, from 200 resamplings or a formula."""
    logits, labels = drawn(task, 200)
    if isinstance(task, Regression):
        knows = labels[:, None] + 0.1 * logits
    elif isinstance(task, Multilabel):
        knows = 8 * labels - 4 + 0.1 * logits
    elif isinstance(task, Ordinal):
        knows = 8.0 * (labels[:, None] > torch.arange(3)) - 4
    else:
        knows = 4 * torch.nn.functional.one_hot(labels, 3).float() + 0.1 * logits
    for found, beats in ((logits, False), (knows, True)):
        decision = task.decide(found, labels)
        value = scores(task, decision, found, labels)[task.select]
        assert task.beats_chance(value, found, labels, decision) is beats


def test_the_threshold_of_validation_is_used_on_test_and_kept(tmp_path: Path) -> None:
    task = Multilabel(demo.LABELS)
    made = model()
    made.config.problem_type = "multi_label_classification"
    artefact.save_float(tmp_path / "m", made, demo.tokenizer(), 32, ("text",), task)
    artefact.note_decision(tmp_path / "m", {"threshold": 0.001})
    loaded = artefact.load(tmp_path / "m")
    assert isinstance(loaded.task, Multilabel)
    assert loaded.predict("the soup was good")[0]["label"] == "negative, positive"
    artefact.note_decision(tmp_path / "m", {"threshold": 0.999})
    assert artefact.load(tmp_path / "m").predict("the soup was good")[0]["label"] == ""
    logits, labels = drawn(Multilabel(["a", "b", "c"]), 30)
    task = Multilabel(["a", "b", "c"])
    entry = Entry("t", None, "t", 0, 0, logits={"validation": logits, "test": -logits})
    data: Any = type("Data", (), {"splits": {}})()
    data.splits = {name: type("Rows", (), {"labels": labels})() for name in ("validation", "test")}
    score([entry], data, task, torch.device("cpu"))
    fixed = scores(task, entry.decision, -logits, labels)
    assert entry.figures["test"] == pytest.approx(fixed)


def test_agreement_counts_rows_with_equal_answers() -> None:
    one, two = torch.tensor([[3.0, -3.0], [3.0, 3.0]]), torch.tensor([[3.0, 3.0], [2.0, 2.0]])
    task = Multilabel(["a", "b"])
    answers = [task.answers(logits, {"threshold": 0.5}) for logits in (one, two)]
    assert task.agreement(*answers) == 0.5
    numbers = Regression(["x"])
    assert numbers.agreement(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0])) == pytest.approx(1.0)
