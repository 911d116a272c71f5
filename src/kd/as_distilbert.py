"""A BERT as a DistilBERT of the same layers: the same network for single texts, with other names."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from kd import heads

EPS = 1e-12  # of DistilBERT's layer norms; no field of its config
HEADS = {  # BERT's model with a head: DistilBERT's, of transformers
    "BertForSequenceClassification": "DistilBertForSequenceClassification",
    "BertForTokenClassification": "DistilBertForTokenClassification",
    "BertForMaskedLM": "DistilBertForMaskedLM",
}
NAMES = (  # patterns of BERT's names, and DistilBERT's
    (r"^bert\.", "distilbert."),
    (r"\.encoder\.layer\.", ".transformer.layer."),
    (r"\.attention\.self\.(q|k|v)(?:uery|ey|alue)\.", r".attention.\1_lin."),
    (r"\.attention\.output\.dense\.", ".attention.out_lin."),
    (r"\.attention\.output\.LayerNorm\.", ".sa_layer_norm."),
    (r"\.intermediate\.dense\.", ".ffn.lin1."),
    (r"(layer\.\d+)\.output\.dense\.", r"\1.ffn.lin2."),
    (r"(layer\.\d+)\.output\.LayerNorm\.", r"\1.output_layer_norm."),
    (r"^distilbert\.pooler\.dense\.", "pre_classifier."),
    (r"^cls\.predictions\.transform\.dense\.", "vocab_transform."),
    (r"^cls\.predictions\.transform\.LayerNorm\.", "vocab_layer_norm."),
    (r"^cls\.predictions\.decoder\.", "vocab_projector."),
)
TOKEN_TYPES = "distilbert.embeddings.token_type_embeddings.weight"
POSITIONS = "distilbert.embeddings.position_embeddings.weight"
LEFT_OUT = (TOKEN_TYPES, "cls.predictions.bias")  # the latter is the decoder's bias by another name


def as_distilbert(bert: Any) -> tuple[Any, list[str]]:
    """The DistilBERT that equals a BERT on single texts, and what was done, in short phrases.

    Type 0 of the token types goes into the positions, of which each token has one too: the sum is the same, and a
    masked language model's decoder, which is tied to the word embeddings, stays what it is. Type 1 is lost. BERT's
    pooler has a tanh where DistilBERT has a ReLU, so only the encoder is equal, and heads without a pooler.
    """
    model = distilbert_class(bert)(config_like(bert.config))
    tensors = {renamed(name): tensor for name, tensor in bert.state_dict().items()}
    tensors[POSITIONS] = tensors[POSITIONS] + tensors[TOKEN_TYPES][0]
    kept: dict[str, Tensor] = {name: tensor for name, tensor in tensors.items() if name not in LEFT_OUT}
    model.load_state_dict(kept)
    told = ["a BERT as a DistilBERT: token type 0 folded into the positions, type 1 left out"]
    if "pre_classifier.weight" in kept:
        told.append("pre_classifier begins as the pooler (a ReLU where that has a tanh: not equal)")
    if bert.config.layer_norm_eps != EPS:
        told.append(f"layer norms with eps {EPS:g}, the teacher's have {bert.config.layer_norm_eps:g}")
    return model.to(torch.float32).eval(), told


def renamed(name: str) -> str:
    for pattern, ours in NAMES:
        name = re.sub(pattern, ours, name)
    return name


def distilbert_class(bert: Any) -> Any:
    """The same kind of head on the other encoder."""
    import transformers

    if heads.pooling_of(bert.config):
        return heads.pooled_class("distilbert")
    return getattr(transformers, HEADS[type(bert).__name__])


def config_like(bert: Any) -> Any:
    """DistilBERT's config with what a BERT's says, labels and all."""
    from transformers import DistilBertConfig

    fields = {
        "vocab_size": bert.vocab_size, "max_position_embeddings": bert.max_position_embeddings,
        "dim": bert.hidden_size, "n_layers": bert.num_hidden_layers, "n_heads": bert.num_attention_heads,
        "hidden_dim": bert.intermediate_size, "activation": bert.hidden_act, "dropout": bert.hidden_dropout_prob,
        "attention_dropout": bert.attention_probs_dropout_prob, "initializer_range": bert.initializer_range,
        "id2label": bert.id2label, "label2id": bert.label2id, "problem_type": bert.problem_type,
    }  # fmt: skip
    more = [name for name in (*heads.OWN, "pad_token_id", "bos_token_id", "eos_token_id") if hasattr(bert, name)]
    config = DistilBertConfig(**fields)
    config.update({name: getattr(bert, name) for name in more})
    return config
