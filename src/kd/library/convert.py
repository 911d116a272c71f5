"""Google's BERT checkpoints as transformers reads them: config.json, model.safetensors and a tokenizer.

Every tensor is either mapped, or an optimizer's and counted, or an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd.errors import UserError
from kd.library.tensor_bundle import TensorBundle

CONFIG, WORDS = "bert_config.json", "vocab.txt"
NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
          "max_position_embeddings")  # fmt: skip
OPTIMIZERS = re.compile(
    r"(.*/(adam_[mv]|lamb_[mv]|Adam(_1)?|Momentum|AdamWeightDecayOptimizer(_1)?|LAMBOptimizer(_1)?)"
    r"|global_step|beta[12]_power|good_steps|(current_)?loss_scale)$"
)
EMBEDDINGS = {
    "bert/embeddings/word_embeddings": "bert.embeddings.word_embeddings.weight",
    "bert/embeddings/position_embeddings": "bert.embeddings.position_embeddings.weight",
    "bert/embeddings/token_type_embeddings": "bert.embeddings.token_type_embeddings.weight",
}
LINEAR = ("attention/self/query", "attention/self/key", "attention/self/value", "attention/output/dense",
          "intermediate/dense", "output/dense")  # fmt: skip
HEADS = {
    "masked words": {
        "cls/predictions/transform/dense/kernel": "cls.predictions.transform.dense.weight",
        "cls/predictions/transform/dense/bias": "cls.predictions.transform.dense.bias",
        "cls/predictions/transform/LayerNorm/gamma": "cls.predictions.transform.LayerNorm.weight",
        "cls/predictions/transform/LayerNorm/beta": "cls.predictions.transform.LayerNorm.bias",
        "cls/predictions/output_bias": "cls.predictions.bias",
    },
    "next sentence": {
        "cls/seq_relationship/output_weights": "cls.seq_relationship.weight",
        "cls/seq_relationship/output_bias": "cls.seq_relationship.bias",
    },
}


@dataclass(frozen=True)
class Converted:
    """What was made of a checkpoint, for people."""

    tensors: int
    skipped: int
    heads: tuple[str, ...]
    architecture: Mapping[str, Any]

    @property
    def told(self) -> str:
        heads = f"heads for {' and '.join(self.heads)}" if self.heads else "no heads"
        slots = f"{self.skipped} of an optimizer left out" if self.skipped else "none left out"
        return f"{self.tensors} tensors converted, {slots}; {heads}"


def encoder_names(layers: int) -> dict[str, str]:
    """The variables of BERT's encoder and pooler, and what transformers calls them."""
    found = {**EMBEDDINGS, **norm("bert/embeddings/LayerNorm")}
    for layer in range(layers):
        for part in LINEAR:
            found |= dense(f"bert/encoder/layer_{layer}/{part}")
        for part in ("attention/output/LayerNorm", "output/LayerNorm"):
            found |= norm(f"bert/encoder/layer_{layer}/{part}")
    return found | dense("bert/pooler/dense")


def dense(name: str) -> dict[str, str]:
    return {f"{name}/kernel": f"{dotted(name)}.weight", f"{name}/bias": f"{dotted(name)}.bias"}


def norm(name: str) -> dict[str, str]:
    return {f"{name}/gamma": f"{dotted(name)}.weight", f"{name}/beta": f"{dotted(name)}.bias"}


def dotted(name: str) -> str:
    return name.replace("/layer_", "/layer/").replace("/", ".")


def mapping(found: Iterable[str], layers: int, where: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """New names by old, and the heads that are there. Raises UserError for tensors missing or unknown."""
    there = {name for name in found if not OPTIMIZERS.match(name)}
    names = encoder_names(layers)
    heads = tuple(head for head, own in HEADS.items() if there & own.keys())
    for head in heads:
        names |= HEADS[head]
    missing, unknown = sorted(names.keys() - there), sorted(there - names.keys())
    if missing:
        raise UserError(f"{where} lacks {len(missing)} tensors of a BERT of {layers} layers: {listed(missing)}.")
    if unknown:
        raise UserError(
            f"{where} has {len(unknown)} tensors that are none of BERT's: {listed(unknown)}. kd converts pre-trained "
            "BERTs, with or without their heads for masked words and next sentences, and leaves out nothing in silence."
        )
    return names, heads


def listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def find_checkpoint(directory: Path) -> Path:
    """The prefix of the one checkpoint at or below a directory. Raises UserError if there is none, or several."""
    if not directory.is_dir():
        raise UserError(f"{directory}: there is no such directory.")
    found = sorted(directory.rglob("*.index"))
    if len(found) != 1:
        what = f"{len(found)} checkpoints ({', '.join(str(path) for path in found[:3])})" if found else "no *.index"
        raise UserError(
            f"{directory} has {what}: give a directory with one TensorFlow checkpoint, X.index and X.data-*."
        )
    for name in (CONFIG, WORDS):
        if not (found[0].parent / name).is_file():
            raise UserError(f"{found[0].parent} has no {name}: it is needed beside the checkpoint.")
    return found[0].with_name(found[0].name.removesuffix(".index"))


def read_bert_config(path: Path) -> dict[str, Any]:
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        absent = [key for key in NEEDED if not isinstance(stored.get(key), int)]
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is broken ({error}): copy it again.") from error
    if absent:
        raise UserError(f"{path} does not say {', '.join(absent)}.")
    return stored


def convert(directory: Path, out: Path, lower_case: bool | None = None) -> Converted:
    """Writes the checkpoint in ``directory`` to ``out``, an empty directory.

    ``lower_case``: whether the tokenizer takes capitals for small letters; None: as the words in vocab.txt show.
    Raises UserError with the first thing that is wrong.
    """
    from safetensors.numpy import save_file

    prefix = find_checkpoint(directory)
    stored = read_bert_config(prefix.parent / CONFIG)
    bundle = TensorBundle(prefix)
    names, heads = mapping(bundle.entries, stored["num_hidden_layers"], bundle.index)
    bundle.check_shards()
    tensors = {new: oriented(bundle.read(old), old) for old, new in names.items()}
    check_shapes(tensors, stored, bundle.index)
    model = "BertForMaskedLM" if "masked words" in heads else "BertModel"  # as the hub's copies of them say
    own = {key: value for key, value in stored.items() if not key.startswith(("pooler_", "directionality"))}
    config = {"architectures": [model], "model_type": "bert", "pad_token_id": 0, **own}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(prefix.parent / WORDS, out, lower_case, stored["max_position_embeddings"])
    return Converted(len(names), len(bundle.entries) - len(names), heads, config)


def oriented(values: NDArray[Any], name: str) -> NDArray[np.float32]:
    """TensorFlow multiplies by a kernel from the right, torch by a weight from the left."""
    if name.endswith("/kernel"):
        values = values.T
    return np.ascontiguousarray(values, np.float32)


def check_shapes(tensors: Mapping[str, NDArray[Any]], config: Mapping[str, Any], where: Path) -> None:
    width, inner = config["hidden_size"], config["intermediate_size"]
    layer = "bert.encoder.layer.0."
    wanted = {
        "bert.embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "bert.embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
        "bert.embeddings.token_type_embeddings.weight": (config.get("type_vocab_size", 2), width),
        f"{layer}attention.self.query.weight": (width, width),
        f"{layer}intermediate.dense.weight": (inner, width),
        f"{layer}output.dense.weight": (width, inner),
    }
    for name, size in wanted.items():
        if name in tensors and tensors[name].shape != size:
            raise UserError(
                f"{where}: {name} has the shape {list(tensors[name].shape)}, and {CONFIG} asks for {list(size)}."
            )


def write_tokenizer(words: Path, out: Path, lower_case: bool | None, longest: int) -> None:
    from transformers import BertTokenizerFast

    if lower_case is None:
        lower_case = not any(has_capital(line) for line in words.read_text(encoding="utf-8").splitlines())
    tokenizer = BertTokenizerFast(str(words), do_lower_case=lower_case, model_max_length=longest)
    tokenizer.save_pretrained(out)
    (out / WORDS).write_bytes(words.read_bytes())


def has_capital(word: str) -> bool:
    return not (word.startswith("[") and word.endswith("]")) and word != word.lower()
