"""Students made of the teacher: its layers, a DistilBERT of a BERT, and narrower ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import OWN, architecture, model

from kd import demo
from kd.as_distilbert import as_distilbert
from kd.check import check_values
from kd.command_line import compose
from kd.contradictions import contradictions
from kd.errors import UserError
from kd.from_teacher import student_from_teacher, student_of_layers
from kd.layer_map import kept_layers
from kd.models import random_model
from kd.narrow import narrowed
from kd.pair import Pair, make_student
from kd.tasks import Classification, FeatureExtraction, MaskedLM, TokenClassification

TASK = Classification(demo.LABELS)
FAMILIES = list(OWN)


def shaken(made: Any) -> Any:
    """With noise on every tensor: biases and layer norms start at 0 and 1, where much is equal that is not alike."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 200, (3, 10), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": (torch.arange(10) < torch.tensor([[10], [4], [7]])).long()}


def states(made: Any) -> list[torch.Tensor]:
    """Of the real tokens."""
    found = made(**inputs(), output_hidden_states=True).hidden_states
    return [state[inputs()["attention_mask"] == 1] for state in found]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_distilberts_layers_of_twelve(family: str) -> None:
    assert kept_layers("distilbert", 6, 12) == [1, 3, 5, 8, 10, 12]  # the published script's 0, 2, 4, 7, 9, 11
    teacher = shaken(model(12, 32, model_type=family))
    student, told = student_from_teacher(teacher, "distilbert", architecture(6, 32, model_type=family))
    listed = student_of_layers(teacher, [1, 3, 5, 8, 10, 12], None)
    assert torch.equal(student(**inputs()).logits, listed(**inputs()).logits)
    assert told[0] == "layers 1 to 6 are its 1, 3, 5, 8, 10, 12 of 12"
    if family == "modernbert":
        types = teacher.config.layer_types
        assert student.config.layer_types == [types[i] for i in (0, 2, 4, 7, 9, 11)]
        assert [layer.attention_type for layer in student.model.layers] == student.config.layer_types


@pytest.mark.parametrize(("layers", "of"), [(6, 24), (4, 12), (6, 6)])
def test_other_depths_are_not_distilberts(layers: int, of: int) -> None:
    with pytest.raises(UserError, match=f"of twelve, and here it is {layers} of {of}: take a teacher of 12 layers"):
        kept_layers("distilbert", layers, of)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
@torch.no_grad()
def test_a_bert_as_a_distilbert_has_its_states(activation: str) -> None:
    teacher = shaken(model(6, 32, hidden_act=activation, hidden_dropout_prob=0.3, pad_token_id=0))
    student, told = student_from_teacher(teacher, [1, 3, 6], architecture(3, 32, model_type="distilbert"))
    assert type(student).__name__ == "DistilBertForSequenceClassification"
    bert = student_of_layers(teacher, [1, 3, 6], None)
    for ours, theirs in zip(states(student), states(bert), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert student.config.dropout == 0.3
    assert student.config.id2label == {0: "negative", 1: "positive"}
    first = student.distilbert(**inputs()).last_hidden_state[:, 0] @ bert.bert.pooler.dense.weight.T
    first = (first + bert.bert.pooler.dense.bias).relu() @ bert.classifier.weight.T + bert.classifier.bias
    torch.testing.assert_close(student(**inputs()).logits, first, atol=1e-5, rtol=0)
    assert "token type 0 folded into the positions" in told[1]
    assert "not equal" in told[2]
    unfolded = bert.bert.embeddings.position_embeddings.weight
    assert not torch.allclose(student.distilbert.embeddings.position_embeddings.weight, unfolded, atol=1e-3)


@pytest.mark.parametrize(
    ("task", "pooling"),
    [(TokenClassification(["O", "B-X", "I-X"]), None), (MaskedLM(), None), (TASK, "mean"), (TASK, "attention"),
     (FeatureExtraction(), "mean")],
)  # fmt: skip
@torch.no_grad()
def test_heads_without_a_pooler_are_equal_too(task: Any, pooling: str | None) -> None:
    teacher = shaken(random_model(architecture(2, 32) | ({"pooling": pooling} if pooling else {}), task))
    student, told = as_distilbert(teacher)
    torch.testing.assert_close(student(**inputs()).logits, teacher(**inputs()).logits, atol=1e-5, rtol=0)
    assert not any("not equal" in phrase for phrase in told)


@torch.no_grad()
def test_another_eps_is_told() -> None:
    _, told = as_distilbert(model(1, 32, layer_norm_eps=1e-5))
    assert "layer norms with eps 1e-12, the teacher's have 1e-05" in told


@pytest.mark.parametrize("task", [TASK, MaskedLM(), FeatureExtraction()])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_no_narrower_is_the_same(family: str, task: Any) -> None:
    made = shaken(random_model(architecture(3, 32, model_type=family), task))
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    assert torch.equal(narrowed(made, sizes)(**inputs()).logits, made(**inputs()).logits)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_what_was_nothing_can_go(family: str) -> None:
    """Neurons of which nothing is read, and positions that no text reaches: the network is the same."""
    made = shaken(model(3, 32, model_type=family))
    for name, tensor in made.state_dict().items():
        if name.endswith(("output.dense.weight", "ffn.lin2.weight", "mlp.Wo.weight")) and tensor.shape[1] == 64:
            tensor[:, ::2] = 0
    small = narrowed(made, {"intermediate_size": 32, "max_position_embeddings": 16})
    torch.testing.assert_close(small(**inputs()).logits, made(**inputs()).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_head_is_kept_whole(family: str) -> None:
    """Of four heads the two whose values matter, with their own queries, keys and outputs."""
    made = shaken(model(1, 32, model_type=family, num_attention_heads=4, num_hidden_layers=1))
    for name, tensor in made.state_dict().items():
        if name.endswith(("value.weight", "v_lin.weight")):
            tensor[:8] = tensor[16:24] = 0
        if name.endswith("Wqkv.weight"):
            tensor[64:72] = tensor[80:88] = 0
    small = narrowed(made, {"hidden_size": 16, "num_attention_heads": 2})
    ours, theirs = small.state_dict(), made.state_dict()
    rows = [*range(8, 16), *range(24, 32)]
    queries = [name for name in ours if name.endswith(("query.weight", "q_lin.weight", "Wqkv.weight"))]
    assert queries
    for name in queries:
        wanted = rows if len(theirs[name]) == 32 else [row + block for block in (0, 32, 64) for row in rows]
        alike = torch.nn.functional.cosine_similarity(ours[name][:, :, None], theirs[name][wanted][:, None], dim=0)
        columns = alike.argmax(1).tolist()
        assert columns == sorted(set(columns))  # the coordinates, one choice everywhere
        part, whole = theirs[name][wanted][:, columns], theirs[name][wanted]
        torch.testing.assert_close(ours[name], part * whole.norm() / part.norm())
        for norm in (name for name in ours if "ayer" in name and name.endswith(("Norm.weight", "norm.weight"))):
            if len(theirs[norm]) == 32:
                assert torch.equal(ours[norm], theirs[norm][columns])
    assert small(**inputs()).logits.shape == (3, 2)


@torch.no_grad()
def test_the_coordinates_that_carry_the_weights_stay() -> None:
    made = model(2, 32)
    strong = [1, 4, 5, 9, 10, 11, 17, 18, 20, 21, 22, 25, 28, 29, 30, 31]
    weak = [i for i in range(32) if i not in strong]
    for name, tensor in made.state_dict().items():
        if tensor.dim() == 2 and tensor.shape[1] == 32 and name != "classifier.weight":
            tensor[:, weak] *= 1e-3
    small = narrowed(made, {"hidden_size": 16, "num_attention_heads": 1, "intermediate_size": 48})
    kept = small.bert.embeddings.word_embeddings.weight
    assert torch.equal(kept, made.bert.embeddings.word_embeddings.weight[:, strong])


def test_a_narrower_vector_is_mapped_back_to_the_coordinates_it_had() -> None:
    made = random_model(architecture(2, 32), FeatureExtraction())
    small = narrowed(made, {"hidden_size": 16, "num_attention_heads": 1})
    assert small(**inputs()).logits.shape == (3, 32)
    assert small.output.weight.sum(1).sort().values.tolist() == [0.0] * 16 + [1.0] * 16
    assert (small.output.weight.sum(0) == 1).all()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_decoder_that_is_the_embeddings_stays_them(family: str) -> None:
    made = shaken(random_model(architecture(2, 32, model_type=family), MaskedLM()))
    small = narrowed(made, {"hidden_size": 16, "num_attention_heads": 1})
    whole, ours = made.get_input_embeddings().weight, small.get_input_embeddings().weight
    assert small.get_output_embeddings().weight is ours
    assert all((whole == column[:, None]).all(0).any() for column in ours.T)  # as they were


SMALLER = ("num_hidden_layers=2", "hidden_size=192", "num_attention_heads=6", "intermediate_size=512")


def line(*more: str) -> Any:
    return compose(["data=demo", "teacher=minilm_l6", "student.weights=teacher", "data.max_length=32", *more])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["student=distilroberta"], "distilroberta is a roberta and teacher=minilm_l6 a bert"),
        (["student=bert_base"], "give 1 to 6"),
        (["student=bert_small"], "Set student.overrides.hidden_size=384 student.overrides.intermediate_size=1536, or"),
        (["student=bert_mini"], "Set student.overrides.num_attention_heads=8"),
        (
            ["student=bert_mini", "student.overrides.hidden_size=200"],
            "hidden_size=192 student.overrides.num_attention_heads=6",
        ),
        (["student=minilm_l6", "student.keep=distilbert"], "here it is 6 of 6"),
        (["student=minilm_l6", "student.keep=[1,2]"], "add student.overrides.num_hidden_layers=2"),
        (["student=minilm_l6", "student.keep=fist"], "Did you mean 'first'"),
        (["student=minilm_l6", "student.pooling=mean"], "a student of the teacher's weights has its head"),
        (["student=minilm_l6", "student.overrides.vocab_size=99"], "student.vocabulary is for other tokens"),
        (
            ["student=bert_mini", "student.weights=random", "student.keep=first"],
            "weights=random takes none of them",
        ),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_loaded(more: list[str], says: str) -> None:
    try:
        check_values(line(*more))
        found = contradictions(line(*more))
    except UserError as error:
        found = [str(error)]
    assert len(found) == 1
    assert says in found[0]
    assert "\n" not in found[0]


@torch.no_grad()
def test_a_named_student_is_made_of_the_teacher() -> None:
    """The run's own way to it: a narrower DistilBERT of two layers, with a dropout of its own."""
    names = [f"student.overrides.{size}" for size in SMALLER]
    cfg = line("student=distilbert", *names, "student.overrides.dropout=0.0")
    check_values(cfg)
    assert not contradictions(cfg)
    shape = {"num_attention_heads": 12, "intermediate_size": 1536, "max_position_embeddings": 512}
    teacher = model(6, 384, **shape)
    pair = Pair({"student": None}, {"student": demo.tokenizer()})
    student = make_student(cfg, pair, teacher, TASK)
    config = student.config
    assert (config.model_type, config.n_layers, config.dim, config.n_heads, config.hidden_dim, config.dropout) == (
        "distilbert", 2, 192, 6, 512, 0.0
    )  # fmt: skip
    assert config.vocab_size == teacher.config.vocab_size
    assert "hidden_size 384 -> 192" in pair.made["student from the teacher"]
    assert all(parameter.requires_grad for parameter in student.parameters())
