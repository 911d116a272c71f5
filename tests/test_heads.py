"""Heads of our own on every family: what they compute, and that they are models like others to the rest of kd."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import OWN, architecture
from omegaconf import OmegaConf
from test_quantization import settings
from torch import Tensor, nn

import kd
from kd import artefact, demo, heads, models, quantization, report
from kd.check import check_values
from kd.command_line import compose
from kd.contradictions import contradictions
from kd.errors import UserError
from kd.from_teacher import student_of_layers
from kd.models import load_model, parameter_count, random_model, tokenizer_for
from kd.signals import Recorder
from kd.tasks import Classification, MaskedLM, Regression, Task, TokenClassification
from kd.teacher import teacher_key

TASK = Classification(demo.LABELS)
FAMILIES = list(OWN)
EVERY = [(family, how) for family in FAMILIES for how in ("mean", "max", "attention")]
POOLED = [(family, how) for family, how in EVERY if (family, how) != ("modernbert", "mean")]  # that one is stock


def made(family: str, how: str | None, layers: int = 2, width: int = 32, seed: int = 0, **more: Any) -> Any:
    torch.manual_seed(seed)
    shape = architecture(layers, width, model_type=family, **more)
    model = random_model(shape | ({"pooling": how} if how else {}), TASK)
    if getattr(model, "score", None) is not None:
        nn.init.normal_(model.score.weight)  # as after training: not all tokens alike
    return model


def inputs(pad: int, to: int = 20) -> dict[str, Tensor]:
    """Three rows of 20, 7 and 2 real tokens, padded to ``to``."""
    ids = torch.randint(5, 500, (3, 20), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([[20], [7], [2]])
    ids = torch.cat([ids, torch.full((3, to - 20), pad)], 1)
    mask = (torch.arange(to) < lengths).long()
    return {"input_ids": ids.masked_fill(mask == 0, pad), "attention_mask": mask}


def by_hand(model: Any, encoded: dict[str, Tensor]) -> np.ndarray[Any, Any]:
    """The logits once more, row by row over real tokens, in numpy."""
    states = model.base_model(**encoded).last_hidden_state.double().numpy()
    weights = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    rows = []
    for state, length in zip(states, encoded["attention_mask"].sum(1).tolist(), strict=True):
        real = state[:length]
        scores = np.exp(real @ weights["score.weight"][0]) if "score.weight" in weights else np.ones(length)
        rows.append(real.max(0) if model.config.kd_pooling == "max" else scores @ real / scores.sum())
    found: np.ndarray[Any, Any] = np.stack(rows) @ weights["output.weight"].T + weights["output.bias"]
    return found


@pytest.mark.parametrize(("family", "how"), POOLED)
@torch.no_grad()
def test_logits_are_those_of_numpy_whatever_the_padding(family: str, how: str) -> None:
    model = made(family, how)
    pad = model.config.pad_token_id
    found = model(**inputs(pad)).logits
    np.testing.assert_allclose(found.numpy(), by_hand(model, inputs(pad)), atol=1e-5)
    for to in (32, 48):
        torch.testing.assert_close(model(**inputs(pad, to)).logits, found, atol=1e-5, rtol=0)
    whole = {"input_ids": inputs(pad)["input_ids"][:1]}
    torch.testing.assert_close(model(**whole).logits, found[:1], atol=1e-5, rtol=0)  # no mask: all tokens are real


@pytest.mark.parametrize("how", ["cls", "mean", "max", "attention"])
def test_nothing_in_padded_places_counts_and_a_full_mask_is_the_plain_mean_and_maximum(how: str) -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, 9, 8, generator=generator)
    score = nn.Linear(8, 1, bias=False)
    mask = (torch.arange(9) < torch.tensor([[9], [4], [1]])).long()
    expected = heads.pool(states, mask, how, score)
    for junk in (1e9, -1e9, torch.inf, torch.nan):
        spoiled = states.masked_fill(mask[..., None] == 0, junk)
        if how == "attention":  # the score sees the states zeroed
            assert torch.equal(heads.pool(spoiled, mask, how, score), expected)
        else:
            assert torch.equal(heads.pool(spoiled, mask, how), expected)
    plain = {"cls": states[:, 0], "mean": states.mean(1), "max": states.max(1).values}
    if how in plain:
        torch.testing.assert_close(heads.pool(states, torch.ones(3, 9), how), plain[how])
    assert torch.equal(expected[2], states[2, 0]) or how == "attention"
    nn.init.zeros_(score.weight)
    if how == "attention":
        torch.testing.assert_close(heads.pool(states, mask, how, score), heads.pool(states, mask, "mean"))


@pytest.mark.parametrize("how", ["mean", "max", "attention"])
def test_gradients_of_pooling_are_right(how: str) -> None:
    states = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    score = nn.Linear(3, 1, bias=False).double()
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    assert torch.autograd.gradcheck(lambda s: heads.pool(s, mask, how, score), (states,))
    heads.pool(states, mask, how, score).sum().backward()  # type: ignore[no-untyped-call]
    assert states.grad is not None
    assert bool((states.grad[1, 2:] == 0).all())


@pytest.mark.parametrize(
    ("family", "how"), [*((family, "cls") for family in FAMILIES), ("modernbert", "mean")]
)  # fmt: skip
@torch.no_grad()
def test_what_transformers_has_stays_its_own_class(family: str, how: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model, plain = made(family, how), made(family, None)
    assert type(model) is type(plain)
    assert not heads.pooling_of(model.config)
    if family == "modernbert":
        assert model.config.classifier_pooling == how
    model.save_pretrained(tmp_path)
    ids = inputs(model.config.pad_token_id)
    assert torch.equal(AutoModelForSequenceClassification.from_pretrained(tmp_path)(**ids).logits, model(**ids).logits)
    assert load_model(tmp_path, TASK).has_head
    assert load_model(tmp_path, TASK, how).has_head
    assert not load_model(tmp_path, TASK, "max").has_head


@torch.no_grad()
def test_a_modernbert_head_that_read_something_else_is_new(tmp_path: Path) -> None:
    made("modernbert", "cls").save_pretrained(tmp_path)
    loaded = load_model(tmp_path, TASK, "mean")
    assert (loaded.has_head, loaded.model.config.classifier_pooling) == (False, "mean")
    assert loaded.model.config is loaded.model.base_model.config
    before = made("modernbert", "cls").state_dict()
    for name, tensor in loaded.model.state_dict().items():
        same = torch.equal(tensor, before[name])
        assert same == (name.startswith("model.") or name in ("head.norm.weight", "classifier.bias")), name


@pytest.mark.parametrize(("family", "how"), POOLED)
@torch.no_grad()
def test_saved_and_read_back_with_and_without_kd(family: str, how: str, tmp_path: Path) -> None:
    from transformers import AutoModel

    tokenizer = tokenizer_for(family, demo.tokenizer())
    model = made(family, how)
    artefact.save_float(tmp_path / "student", model, tokenizer, 32, ("text",), TASK)
    loaded = kd.load(tmp_path / "student")
    ids = inputs(model.config.pad_token_id)
    assert torch.equal(loaded.model(**ids).logits, model(**ids).logits)
    assert loaded.model.config.kd_pooling == how
    encoder = AutoModel.from_pretrained(tmp_path / "student")
    assert torch.equal(encoder(**ids).last_hidden_state, model.base_model(**ids).last_hidden_state)
    assert loaded.predict("the soup was good")[0]["label"] in demo.LABELS
    assert parameter_count(model) == sum(p.numel() for p in loaded.model.parameters())
    pooler = [name for name in model.state_dict() if "pooler" in name]
    assert pooler == []


@pytest.mark.parametrize(("family", "how"), POOLED)
@torch.no_grad()
def test_a_checkpoint_with_this_head_has_one_and_others_get_a_new_one(family: str, how: str, tmp_path: Path) -> None:
    model = made(family, how)
    model.config.update({"id2label": {0: "positive", 1: "negative"}, "label2id": {"positive": 0, "negative": 1}})
    model.save_pretrained(tmp_path / "head")
    ids = inputs(model.config.pad_token_id)
    for asked in (None, how):
        loaded = load_model(tmp_path / "head", TASK, asked)
        assert loaded.has_head
        assert models.reorder_labels(loaded.model, TASK)
        torch.testing.assert_close(loaded.model(**ids).logits, model(**ids).logits[:, [1, 0]])
    for directory, save in (("base", model.base_model), ("stock", made(family, None)), ("other", made(family, "cls"))):
        save.save_pretrained(tmp_path / directory)
        loaded = load_model(tmp_path / directory, TASK, how)
        assert not loaded.has_head
        assert loaded.model.config.kd_pooling == how
        assert loaded.model.config is loaded.model.base_model.config
        assert loaded.model.config.id2label == {0: "negative", 1: "positive"}
        kept = save.base_model.state_dict() if directory != "base" else save.state_dict()
        assert all(torch.equal(kept[k], v) for k, v in loaded.model.base_model.state_dict().items())
        if how == "attention":
            assert not loaded.model.score.weight.any()
    back = load_model(tmp_path / "head", TASK, "cls")  # and from ours to transformers' own
    assert not back.has_head
    assert type(back.model) is type(made(family, "cls"))
    assert "kd_pooling" not in back.model.config.to_dict()


def test_a_checkpoint_that_lacks_its_pooled_head_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    made("bert", "attention").save_pretrained(tmp_path)
    tensors = {k: v for k, v in load_file(tmp_path / "model.safetensors").items() if not k.startswith("score")}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"a BertPooled but lacks score\.weight"):
        load_model(tmp_path, TASK)
    tensors = {k: v for k, v in tensors.items() if "layer.1.output" not in k}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="of the encoder"):
        load_model(tmp_path, TASK, "max")


@pytest.mark.parametrize(("family", "how"), POOLED)
@torch.no_grad()
def test_signals_and_layers_are_as_in_other_models(family: str, how: str) -> None:
    teacher = made(family, how, layers=4)
    ids = inputs(teacher.config.pad_token_id)
    names = ["logits", "embedding", *(f"{kind}/{k}" for kind in ("hidden", "cls") for k in range(5))]
    signals = Recorder(teacher, names)(**ids)
    expected = teacher(**ids, output_hidden_states=True)
    assert torch.equal(signals["logits"], expected.logits)
    for k in range(5):
        assert torch.equal(signals[f"hidden/{k}"], expected.hidden_states[k])
        assert torch.equal(signals[f"cls/{k}"], expected.hidden_states[k][:, 0])
    student = student_of_layers(teacher, "uniform", 2)
    assert (student.config.num_hidden_layers, student.base_model.config.num_hidden_layers) == (2, 2)
    for name in ("output.weight", "score.weight"):
        if name in teacher.state_dict():
            assert torch.equal(student.state_dict()[name], teacher.state_dict()[name])
    whole = student_of_layers(teacher, "first", 4)
    assert torch.equal(whole(**ids).logits, expected.logits)
    changed = models.with_fields(
        student, {"classifier_dropout" if family != "distilbert" else "seq_classif_dropout": 0.5}
    )
    assert changed.dropout.p == 0.5
    assert torch.equal(changed(**ids).logits, student(**ids).logits)
    twin = copy.deepcopy(student)
    assert torch.equal(twin(**ids).logits, student(**ids).logits)


@pytest.mark.parametrize(("family", "how"), POOLED)
@pytest.mark.parametrize(("name", "head"), [("int8_qat", False), ("int4_qat", True), ("int8", False)])
@torch.no_grad()
def test_quantized_like_others_and_the_head_only_if_asked(
    family: str, how: str, name: str, head: bool, tmp_path: Path
) -> None:
    student, quant = made(family, how, width=64), settings(name, head=head)
    ids = inputs(student.config.pad_token_id)
    if quant.qat:
        quantization.prepare(student, quant)
        student.train()
        with torch.enable_grad():
            student(**ids).logits.pow(2).sum().backward()
        assert student.output.weight.grad is not None
        student.eval()
    converted, summary = quantization.convert(student, quant)
    if quant.qat:
        torch.testing.assert_close(converted(**ids).logits, student(**ids).logits, atol=1e-5, rtol=0)
    own = ["score", "output"] if how == "attention" else ["output"]
    assert list(summary.skipped) == ([] if head else own)
    artefact.save_quantized(tmp_path / "q", converted, demo.tokenizer(), 32, quant, summary, ("text",), TASK)
    loaded = kd.load(tmp_path / "q")
    assert torch.equal(loaded.model(**ids).logits, converted(**ids).logits)


@pytest.mark.parametrize(("family", "how"), POOLED)
def test_a_regression_starts_at_the_mean(family: str, how: str, tmp_path: Path) -> None:
    task = Regression(["valence"])
    task.see([2.0, 4.0, 3.0, 3.0])
    torch.manual_seed(0)
    model = random_model(architecture(1, 16, model_type=family) | {"pooling": how}, task)
    assert models.head_linear(model) is model.output
    assert float(model.output.bias.detach()) == 3.0
    model.base_model.save_pretrained(tmp_path)
    assert float(load_model(tmp_path, task, how).model.output.bias.detach()) == 3.0


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_that_of_the_familys_own_head(family: str) -> None:
    stock = made(family, None)
    own = {"dropout", "drop", "classifier.dropout"} & {name for name, _ in stock.named_modules()}
    (name,) = own
    assert made(family, "max").dropout.p == stock.get_submodule(name).p
    field = "seq_classif_dropout" if family == "distilbert" else "classifier_dropout"
    assert made(family, "max", 2, 32, 0, **{field: 0.35}).dropout.p == 0.35


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_vectors_instead_of_logits(family: str, tmp_path: Path) -> None:
    """``kd_vector``: the pooled state itself, or a linear map of it to another width."""
    config = models.config_of(architecture(2, 32, model_type=family), TASK)
    ids = inputs(config.pad_token_id)
    for width, parts in ((0, []), (32, []), (48, ["output.weight", "output.bias"])):
        config.update({"kd_pooling": "mean", "kd_vector": width})
        model = heads.Auto(TASK).from_config(copy.deepcopy(config)).eval()
        assert model.config.kd_vector == (width or 32)
        assert [name for name in model.state_dict() if not name.startswith(model.base_model_prefix)] == parts
        assert heads.learned(model) == bool(parts)
        vectors = model(**ids).logits
        assert vectors.shape == (3, width or 32)
        states = model.base_model(**ids).last_hidden_state
        pooled = torch.stack([states[i, :n].mean(0) for i, n in enumerate((20, 7, 2))])
        torch.testing.assert_close(vectors, model.output(pooled), atol=1e-5, rtol=0)
        model.train()
        assert isinstance(model.dropout, nn.Identity)
        model.eval().save_pretrained(tmp_path)
        back = heads.Auto(TASK).from_pretrained(tmp_path)
        assert torch.equal(back(**ids).logits, vectors)


def test_a_wrong_word_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="teacher.pooling=men: Did you mean 'mean'"):
        check_values(compose(["teacher.pooling=men"]))
    with pytest.raises(UserError, match="student.pooling=atention: Did you mean 'attention'"):
        check_values(compose(["student.pooling=atention"]))


@pytest.mark.parametrize("task", [TokenClassification(["O", "B-x"]), MaskedLM()], ids=lambda task: type(task).__name__)
def test_answers_for_single_tokens_pool_nothing(task: Task, tmp_path: Path) -> None:
    shape = architecture(1, 32)
    stock = random_model(shape, task)
    assert not heads.pooling_of(stock.config)
    words = {"TokenClassification": "token-classification", "MaskedLM": "fill-mask"}
    assert heads.described(stock, task) == {
        "auto": task.auto_class().__name__, "own": None, "pipeline": words[type(task).__name__],
    }  # fmt: skip
    with pytest.raises(UserError, match="pooling=mean: this task has an answer for single tokens"):
        random_model(shape | {"pooling": "mean"}, task)
    made("bert", "mean").save_pretrained(tmp_path)
    loaded = load_model(tmp_path, task)
    assert not loaded.has_head
    assert "kd_pooling" not in loaded.model.config.to_dict()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("student=modernbert_base student.pooling=max student.overrides.classifier_bias=true", "belongs to the head"),
        (
            "student=modernbert_base student.pooling=mean student.overrides.classifier_pooling=cls",
            "student.pooling says",
        ),
        ("student=modernbert_base student.pooling=mean student.overrides.classifier_bias=true", None),
        ("student=bert_small student.pooling=mean student.overrides.classifier_dropout=0.2", None),
    ],
)
def test_overrides_that_the_head_does_not_read_are_refused(line: str, says: str | None) -> None:
    cfg = compose(line.split())
    if says is None:
        check_values(cfg)
        return
    with pytest.raises(UserError, match=says):
        check_values(cfg)


def test_a_student_of_layers_has_its_teachers_head() -> None:
    lines = ["student=layers", "teacher=minilm_l6"]
    assert contradictions(compose([*lines, "teacher.pooling=mean"])) == []
    assert contradictions(compose([*lines, "teacher.pooling=mean", "student.pooling=mean"])) == []
    (found,) = contradictions(compose([*lines, "student.pooling=mean"]))
    assert "Set teacher.pooling=mean too" in found


def test_a_teachers_key_has_the_pooling_only_where_there_is_one(data: Any) -> None:
    import functools

    from kd.fit import FitSettings
    from kd.teacher import FineTune

    how = FitSettings(
        {"precision": "32-true", "gradient_clip_val": 1.0},
        functools.partial(torch.optim.SGD, lr=0.1),
        "linear",
        0.06,
        0,
    )
    tune = FineTune("auto", 1, -1, 8, 0.1, 0)
    keys = [
        teacher_key("weights", demo.tokenizer(), data, TASK, tune, how, pooling) for pooling in (None, "cls", "mean")
    ]
    assert len(set(keys)) == 3
    assert keys[0] == teacher_key("weights", demo.tokenizer(), data, TASK, tune, how)


def test_the_card_says_which_head_it_is_and_who_loads_it() -> None:
    found: dict[str, Any] = {
        "example": '"a text"', "stock": [], "answer": "logits", "head": heads.described(made("bert", None), TASK)
    }  # fmt: skip
    assert "AutoModelForSequenceClassification.from_pretrained" in report.loading(found, "student")
    assert "kd.load" in report.loading(found, "student-int8")
    found["head"] = heads.described(made("bert", "mean"), TASK)
    card = report.loading(found, "student")
    assert "the mean of the last states of all real tokens, dropout, and a linear layer to 2 logits" in card
    assert 'kd.load("student").predict("a text")' in card
    assert 'AutoModel.from_pretrained("student")' in card
    assert "AutoModelForSequenceClassification" not in card


def test_old_configurations_have_no_pooling() -> None:
    """A run of an earlier kd is resumed with the configuration that lies there."""
    from kd.architecture import architecture as architecture_of

    cfg = compose(["student=layers", "teacher=minilm_l6"])
    for role in ("teacher", "student"):
        OmegaConf.set_struct(cfg, False)
        del cfg[role]["pooling"]
        assert "pooling" not in architecture_of(cfg, role)
    assert contradictions(cfg) == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", [MaskedLM(), TokenClassification(["O", "B-x"])], ids=lambda task: type(task).__name__)
def test_a_pooled_models_encoder_starts_one_of_single_tokens(family: str, task: Task, tmp_path: Path) -> None:
    """As transformers makes it: no layer that is never used, and a decoder that shares the embeddings."""
    pooled = made(family, "max")
    pooled.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, task)
    assert not loaded.has_head
    stock = random_model(architecture(model_type=family), task)
    assert parameter_count(loaded.model) == parameter_count(stock)
    assert set(loaded.model.state_dict()) == set(stock.state_dict())
    for name, tensor in pooled.base_model.state_dict().items():
        assert loaded.model.base_model.state_dict()[name].equal(tensor)
