"""Every teacher with every student, method and quantization: composed, checked, its losses set up. No weights."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from kd.architecture import architecture
from kd.build import build, build_losses, model_configs, quantization_settings
from kd.check import check_values
from kd.command_line import compose, conf_dir, options
from kd.contradictions import contradictions, quantization_contradictions
from kd.errors import UserError
from kd.models import config_of, parameter_count
from kd.quantization import layers_to_quantize
from kd.tasks import Classification, FeatureExtraction

TEACHERS, STUDENTS, METHODS, QUANTS = (options(group) for group in ("teacher", "student", "method", "quant"))
PAIRS = list(itertools.product(TEACHERS, STUDENTS))
TASK = Classification(["negative", "positive"])
# what is refused, by a part of the answer
TOO_FEW = "student.num_layers=3: the teacher has 2 layers"
TOO_DEEP = "is too deep to have each paired"
NO_VECTORS = "it compares vectors of texts, and this task's models give something else"
TWO_CLASSES = "three outputs or more of which one is right"
OTHER_HEADS = "it compares attention heads one by one"
WINDOW = "attends within a sliding window only"
OTHER_TOKENS = "token by token, but teacher and student have different tokenizers"


@cache
def node(group: str, name: str) -> Any:
    return compose([f"{group}={name}"])[group]


@cache
def base() -> DictConfig:
    return compose([])


def cfg_of(**names: str) -> DictConfig:
    """What compose() gives for these names: no group's files look into another's but by interpolation."""
    cfg = base().copy()
    for group, name in names.items():
        cfg[group] = node(group, name)
    return cfg


@cache
def teacher_cfg(teacher: str, data: str) -> DictConfig:
    return cfg_of(teacher=teacher, data=data)


def pair_cfg(teacher: str, student: str) -> DictConfig:
    """One object for all of a teacher's students, since copying takes longest."""
    demo = "tiny_demo" in (teacher, student)  # which has 64 positions and no text of its own
    cfg = teacher_cfg(teacher, "demo" if demo else "sst2")
    cfg.student = node("student", student)
    return cfg


def refusal(cfg: DictConfig) -> str:
    """What a user would read before anything is loaded; empty if the run would start."""
    try:
        found = contradictions(cfg)
        quantization_settings(cfg)
    except UserError as error:
        return str(error)
    return "\n".join(found)


@cache
def pair_configs(teacher: str, student: str) -> tuple[Any, Any]:
    return model_configs(pair_cfg(teacher, student), TASK)


@pytest.fixture
def made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configs and losses take milliseconds, and thousands of pairs share a few dozen: setup() makes a loss anew."""
    losses: dict[str, Any] = {}

    def once(node: DictConfig) -> Any:
        if str(node) not in losses:
            losses[str(node)] = build(node)
        return losses[str(node)]

    monkeypatch.setattr("kd.build.build", once)
    monkeypatch.setattr("kd.build.model_configs", lambda cfg, _: pair_configs(cfg.teacher.name, cfg.student.name))


def loss_refusal(cfg: DictConfig) -> str:
    try:
        with torch.device("meta"):  # projections without content: their orthogonal start would take minutes here
            losses = build_losses(cfg, TASK)
    except UserError as error:
        return str(error)
    widths = [config.hidden_size for config in pair_configs(cfg.teacher.name, cfg.student.name)]
    for loss in losses.values():
        assert loss.student_signals
        for made in loss.modules():
            if isinstance(made, nn.Linear):
                assert [made.out_features, made.in_features] == widths
    return ""


DEPTH = {
    "bert_large": 24, "bert_large_cased": 24, "bert_large_wwm": 24, "bert_large_cased_wwm": 24, "bert_base": 12,
    "bert_base_cased": 12, "bert_multilingual": 12, "bert_chinese": 12, "bert_medium": 8, "distilbert": 6,
    "distilbert_cased": 6, "distilbert_multilingual": 6, "minilm_l6": 6, "bert_small": 4, "bert_mini": 4,
    "tiny_demo": 4, "bert_tiny": 2, "distilroberta": 6, "roberta_base": 12, "electra_small": 12, "modernbert_base": 22,
    "modernbert_large": 28,
}  # fmt: skip
STUDENT_DEPTH = DEPTH | {"layers": 3, "distilbert_small": 4, "distilbert_tiny": 2, "tiny_demo": 2}
CASED = {"bert_large_cased", "bert_large_cased_wwm", "bert_base_cased", "distilbert_cased"}
MULTILINGUAL = {"bert_multilingual", "distilbert_multilingual"}
FOLLOWS = {"layers", "distilbert_small", "distilbert_tiny"}  # these read with the teacher's tokenizer


@pytest.mark.parametrize("name", STUDENTS)
def test_the_first_line_of_a_model_counts_right_and_its_layers_take_int4(name: str) -> None:
    """The parameters of the model with a head for two labels, as a run prints them."""
    cfg = cfg_of(student=name, quant="int4")
    with torch.device("meta"):
        model = TASK.auto_class().from_config(config_of(architecture(cfg, "student"), TASK))
    (settings,) = quantization_settings(cfg)
    assert layers_to_quantize(model, settings).quantized
    count = parameter_count(model) / 1e6
    line = (conf_dir() / "student" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    if " M parameters" in line:
        assert f" {count:.1f} M" in line if count < 10 else f" {count:.0f} M" in line, count
        shape = architecture(cfg, "student")
        said = [f"{shape['hidden_size']} wide", f"{shape['num_attention_heads']} heads"]
        assert all(part in line for part in (*said, f"{shape['num_hidden_layers']} layers"))
    for group in ("model", "teacher"):
        if name in options(group) and name != "tiny_demo":
            assert (conf_dir() / group / f"{name}.yaml").read_text(encoding="utf-8").startswith(line)


def vocabulary(name: str) -> str:
    return (
        "cased" if name in CASED else "multilingual" if name in MULTILINGUAL
        else "roberta" if "roberta" in name else "modernbert" if name.startswith("modernbert")
        else name if name in ("bert_chinese", "tiny_demo") else "uncased"
    )  # fmt: skip


UNIFORM = {"pkd", "pkd_upstream", "feature", "tinybert", "tinybert_upstream"}  # each layer with one of the teacher's
SAME_HEADS = {"minilm", "attention", "attention_kl", "tinybert", "tinybert_upstream"}
WINDOWS = {"attention", "tinybert", "tinybert_upstream"}
OF_TOKENS = SAME_HEADS | {"feature", "minilmv2", "minilmv2_upstream", "cosine", "distilbert"}


def expected(teacher: str, student: str, method: str) -> str:
    heads = [config.num_attention_heads for config in pair_configs(teacher, student)]
    if method == "embed":
        return NO_VECTORS
    if method in ("standardized", "dist"):
        return TWO_CLASSES
    if method in UNIFORM and STUDENT_DEPTH[student] > 2 * DEPTH[teacher]:
        return TOO_DEEP
    if method in SAME_HEADS and heads[0] != heads[1]:
        return OTHER_HEADS
    if method == "attention" and STUDENT_DEPTH[student] > 2 * DEPTH[teacher]:
        return TOO_DEEP
    if method in WINDOWS and "modernbert" in teacher + student:
        return WINDOW
    if method in OF_TOKENS and student not in FOLLOWS and "tiny_demo" not in (teacher, student):
        return OTHER_TOKENS if vocabulary(teacher) != vocabulary(student) else ""
    return ""


def test_every_pair() -> None:
    """Nothing that is looked at here depends on the method."""
    assert set(DEPTH) == set(TEACHERS)
    assert set(STUDENT_DEPTH) == set(STUDENTS)
    refused = []
    for teacher, student in PAIRS:
        cfg = pair_cfg(teacher, student)
        check_values(cfg)
        if says := refusal(cfg):
            assert TOO_FEW in says
            refused.append((teacher, student))
    assert refused == [("bert_tiny", "layers")]
    assert len(PAIRS) == 550


@pytest.mark.parametrize("quant", QUANTS)
def test_every_student_with_every_quantization(quant: str) -> None:
    """Of the teacher it sees what student=layers takes over."""
    pairs = [pair for pair in PAIRS if pair[1] == "layers" or pair[0] == "bert_base"]
    pairs.remove(("bert_tiny", "layers"))
    for teacher, student in pairs:
        cfg = pair_cfg(teacher, student)
        cfg.quant = node("quant", quant)
        assert len(quantization_settings(cfg)) == (quant != "none")
        assert not quantization_contradictions(cfg), (teacher, student)


BY_METHODS: list[tuple[str, dict[str, int]]] = [
    ("embed", {NO_VECTORS: 549}),
    ("dist standardized", {TWO_CLASSES: 549}),
    ("pkd pkd_upstream", {TOO_DEEP: 96}),
    ("feature", {TOO_DEEP: 96, OTHER_TOKENS: 251}),
    ("cosine distilbert minilmv2 minilmv2_upstream", {OTHER_TOKENS: 312}),
    ("minilm attention_kl", {OTHER_HEADS: 363, OTHER_TOKENS: 114}),
    ("attention", {OTHER_HEADS: 363, WINDOW: 27, TOO_DEEP: 7, OTHER_TOKENS: 86}),
    ("tinybert tinybert_upstream", {TOO_DEEP: 96, OTHER_HEADS: 274, WINDOW: 27, OTHER_TOKENS: 86}),
]
REFUSED = {method: counts for methods, counts in BY_METHODS for method in methods.split()}


@pytest.mark.usefixtures("made_once")
@pytest.mark.parametrize("method", METHODS)
def test_every_pair_with_every_method(method: str) -> None:
    counts: Counter[str] = Counter()
    for teacher, student in PAIRS:
        if (teacher, student) == ("bert_tiny", "layers"):
            continue
        cfg = pair_cfg(teacher, student)
        cfg.method = node("method", method)
        says, should = loss_refusal(cfg), expected(teacher, student, method)
        assert (should in says) if should else not says, (teacher, student, says)
        counts[should] += 1
    assert counts.total() == len(PAIRS) - 1 == 549
    assert {text: count for text, count in counts.items() if text} == REFUSED.get(method, {})


@pytest.mark.usefixtures("made_once")
def test_every_pair_gives_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the families and widths: method=embed looks at neither."""
    task = FeatureExtraction()
    monkeypatch.setattr("kd.models.config_of", lambda *_: SimpleNamespace(vocab_size=0, layer_types=[""] * 28))
    for teacher, student in PAIRS:
        cfg = pair_cfg(teacher, student)
        cfg.data.task, cfg.method = "feature_extraction", node("method", "embed")
        if cfg.teacher.name == "tiny_demo":
            cfg.teacher.fine_tune.when = "never"
        check_values(cfg)
        says = refusal(cfg)
        assert (TOO_FEW in says) if (teacher, student) == ("bert_tiny", "layers") else not says, (teacher, student)
        if not says:
            losses = build_losses(cfg, task)
            assert {loss.teacher_signals for loss in losses.values()} == {("logits",)}


def test_what_was_put_together_is_what_composes() -> None:
    draw = random.Random(0)
    for _ in range(12):
        names: dict[str, Any] = {
            "teacher": draw.choice(TEACHERS), "student": draw.choice(STUDENTS), "method": draw.choice(METHODS),
            "quant": draw.choice(QUANTS), "data": draw.choice(["sst2", "demo"]),
        }  # fmt: skip
        whole = compose([f"{group}={name}" for group, name in names.items()])
        assert [whole[group].name for group in names] == list(names.values())
        assert OmegaConf.to_container(cfg_of(**names)) == OmegaConf.to_container(whole)
        assert cfg_of(**names).optimizer.lr == whole.optimizer.lr
