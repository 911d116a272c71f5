"""A checkpoint that TensorFlow wrote (fixtures/make_tf_checkpoint.py), read and converted without TensorFlow.

What the converted model computes is compared with BERT written down here in numpy, on the arrays as TensorFlow has
them.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_writer import bitwise
from named_models import SMALL, bert_shapes, put_bert
from numpy.typing import NDArray

from kd.errors import UserError
from kd.library.checked import check_model
from kd.library.conversion import convert_directory
from kd.library.convert import convert
from kd.library.crc32c import BLOCK, LANES, crc32c
from kd.library.tensor_bundle import MAGIC, TensorBundle

TF = Path(__file__).parent / "fixtures" / "tf_bert"
Array = NDArray[np.float64]


def test_the_sums_of_rfc_3720() -> None:
    assert crc32c(b"") == 0
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


def test_large_buffers_are_summed_as_small_ones_are() -> None:
    data = np.random.default_rng(0).integers(0, 256, 64 * LANES + 777, dtype=np.uint8)
    assert crc32c(data) == bitwise(data.tobytes())


def test_blocks_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(1).integers(0, 256, 3 * 64 * LANES + 5, dtype=np.uint8)
    whole = crc32c(data)
    assert len(data) < BLOCK
    monkeypatch.setattr("kd.library.crc32c.BLOCK", 64 * LANES + 1)
    assert crc32c(data) == whole


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    assert convert(TF, out).told == (
        "46 tensors converted, 93 of an optimizer left out; heads for masked words and next sentence"
    )
    return out


def raw_arrays() -> dict[str, Array]:
    """The tensors as TensorFlow wrote them, found by the places that the index gives; no sum is looked at."""
    bundle = TensorBundle(TF / "bert_model.ckpt")
    data = (TF / "bert_model.ckpt.data-00000-of-00001").read_bytes()
    return {
        name: np.frombuffer(data, "<f4", one.size // 4, one.offset).reshape(one.shape).astype(np.float64)
        for name, one in bundle.entries.items()
        if one.dtype == 1
    }


def gelu(x: Array) -> Array:
    return np.asarray(x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))))


def softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


class NumpyBert:
    """Devlin et al. 2018, section 3, and Vaswani et al. 2017, with the variables of google-research/bert."""

    def __init__(self, arrays: dict[str, Array], heads: int) -> None:
        self.arrays, self.heads = arrays, heads

    def norm(self, x: Array, name: str) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return np.asarray(scaled * self.arrays[f"{name}/LayerNorm/gamma"] + self.arrays[f"{name}/LayerNorm/beta"])

    def dense(self, x: Array, name: str) -> Array:
        return x @ self.arrays[f"{name}/kernel"] + self.arrays[f"{name}/bias"]

    def layer(self, x: Array, name: str) -> Array:
        length, width = x.shape
        query, key, value = (
            self.dense(x, f"{name}/attention/self/{part}").reshape(length, self.heads, -1).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        weights = softmax(query @ key.transpose(0, 2, 1) / math.sqrt(width // self.heads))
        mixed = (weights @ value).transpose(1, 0, 2).reshape(length, width)
        x = self.norm(x + self.dense(mixed, f"{name}/attention/output/dense"), f"{name}/attention/output")
        inner = gelu(self.dense(x, f"{name}/intermediate/dense"))
        return self.norm(x + self.dense(inner, f"{name}/output/dense"), f"{name}/output")

    def run(self, ids: list[int], types: list[int]) -> tuple[list[Array], Array, Array, Array]:
        """Hidden states ``[L, H]`` of embeddings and layers, the pooled one, logits of words and of next sentences."""
        words = self.arrays["bert/embeddings/word_embeddings"]
        positions = self.arrays["bert/embeddings/position_embeddings"][: len(ids)]
        x = words[ids] + positions + self.arrays["bert/embeddings/token_type_embeddings"][types]
        states = [self.norm(x, "bert/embeddings")]
        for layer in range(2):
            states.append(self.layer(states[-1], f"bert/encoder/layer_{layer}"))
        pooled = np.tanh(self.dense(states[-1][0], "bert/pooler/dense"))
        transformed = gelu(self.dense(states[-1], "cls/predictions/transform/dense"))
        transformed = self.norm(transformed, "cls/predictions/transform")
        logits = transformed @ words.T + self.arrays["cls/predictions/output_bias"]
        relation = pooled @ self.arrays["cls/seq_relationship/output_weights"].T
        return states, pooled, logits, relation + self.arrays["cls/seq_relationship/output_bias"]


def test_it_computes_what_the_arrays_say(converted: Path) -> None:
    import torch
    from transformers import BertForPreTraining

    ids, types = [2, 5, 33, 31, 36, 3, 8, 9, 3], [0] * 6 + [1] * 3
    states, pooled, logits, relation = NumpyBert(raw_arrays(), heads=2).run(ids, types)
    model, info = BertForPreTraining.from_pretrained(converted, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        inputs = {"input_ids": torch.tensor([ids]), "token_type_ids": torch.tensor([types])}
        found = model.eval()(**inputs, output_hidden_states=True)
        own = model.bert(**inputs).pooler_output
    assert len(found.hidden_states) == len(states) == 3
    for mine, theirs in zip(states, found.hidden_states, strict=True):
        np.testing.assert_allclose(theirs[0].numpy(), mine, atol=1e-5)
    np.testing.assert_allclose(own[0].numpy(), pooled, atol=1e-5)
    np.testing.assert_allclose(found.prediction_logits[0].numpy(), logits, atol=1e-5)
    np.testing.assert_allclose(found.seq_relationship_logits[0].numpy(), relation, atol=1e-5)


def test_every_array_is_one_of_the_converted_tensors_or_a_slot(converted: Path) -> None:
    from safetensors.numpy import load_file

    arrays, tensors = raw_arrays(), load_file(converted / "model.safetensors")
    slots = {name for name in arrays if name.endswith(("/adam_m", "/adam_v"))}
    assert all(not arrays[name].any() for name in slots)
    kept = sorted(sorted(np.round(value, 6).ravel().tolist()) for name, value in arrays.items() if name not in slots)
    assert kept == sorted(sorted(np.round(value.astype(np.float64), 6).ravel().tolist()) for value in tensors.values())


def test_the_tokenizer_reads_as_the_words_say(converted: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert tokenizer.tokenize("The GOOD film") == ["the", "good", "film"]
    assert tokenizer("a film")["input_ids"] == [2, 5, 31, 3]
    assert check_model(converted)["vocab_size"] == len(tokenizer) == 66


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TF, tmp_path / "tf"))


def refused(checkpoint: Path, match: str) -> None:
    """Nothing is left of a conversion that is refused."""
    out = checkpoint.parent / "out"
    with pytest.raises(UserError, match=match):
        convert_directory(checkpoint, out, None)
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]


DATA, INDEX = "bert_model.ckpt.data-00000-of-00001", "bert_model.ckpt.index"


def test_a_missing_data_file(checkpoint: Path) -> None:
    (checkpoint / DATA).unlink()
    refused(checkpoint, f"{DATA} is missing: the checkpoint has 1 data files")


def test_a_data_file_that_is_cut_off(checkpoint: Path) -> None:
    content = (checkpoint / DATA).read_bytes()
    (checkpoint / DATA).write_bytes(content[:-100])
    refused(checkpoint, rf"{DATA} is cut off: it has {len(content) - 100:,} bytes, its tensors take")


def test_a_byte_that_changed(checkpoint: Path) -> None:
    content = bytearray((checkpoint / DATA).read_bytes())
    one = TensorBundle(TF / "bert_model.ckpt").entries["bert/pooler/dense/kernel"]
    content[one.offset + 3] ^= 1
    (checkpoint / DATA).write_bytes(content)
    refused(checkpoint, r"tensor bert/pooler/dense/kernel: its checksum \(CRC-32C\) is wrong")


def test_an_index_that_changed(checkpoint: Path) -> None:
    content = bytearray((checkpoint / INDEX).read_bytes())
    content[40] ^= 1
    (checkpoint / INDEX).write_bytes(content)
    refused(checkpoint, "the checksum of a block is wrong")


def test_an_index_that_is_none(checkpoint: Path) -> None:
    content = (checkpoint / INDEX).read_bytes()
    assert content.endswith(MAGIC.to_bytes(8, "little"))
    (checkpoint / INDEX).write_bytes(content[:-1] + b"\0")
    refused(checkpoint, "its last bytes are not those of such a file")
    (checkpoint / INDEX).write_bytes(content[:30])
    refused(checkpoint, "its last bytes are not those of such a file")


def config(checkpoint: Path, **fields: Any) -> None:
    path = checkpoint / "bert_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_tensor_that_is_missing(checkpoint: Path) -> None:
    config(checkpoint, num_hidden_layers=3)
    refused(checkpoint, "lacks 16 tensors of a BERT of 3 layers: bert/encoder/layer_2/attention/output/LayerNorm/beta")


def test_tensors_that_nobody_knows(checkpoint: Path) -> None:
    config(checkpoint, num_hidden_layers=1)
    refused(checkpoint, "16 tensors that are none of BERT's: bert/encoder/layer_1/.* leaves out nothing in silence")


def test_sizes_that_the_config_does_not_have(checkpoint: Path) -> None:
    config(checkpoint, vocab_size=67)
    refused(checkpoint, r"word_embeddings.weight has the shape \[66, 16\], and bert_config.json asks for \[67, 16\]")


def test_several_checkpoints_or_none(checkpoint: Path) -> None:
    shutil.copy(checkpoint / INDEX, checkpoint / "other.index")
    refused(checkpoint, "has 2 checkpoints")
    for path in checkpoint.glob("*.index"):
        path.unlink()
    refused(checkpoint, r"has no \*.index")


def test_what_has_to_lie_beside_it(checkpoint: Path) -> None:
    (checkpoint / "vocab.txt").unlink()
    refused(checkpoint, "has no vocab.txt")


def test_old_names_of_norms_load(tmp_path: Path) -> None:
    """As TensorFlow called them, which the hub's oldest checkpoints still do, also in safetensors."""
    from safetensors.numpy import save_file

    from kd import demo
    from kd.models import load_model
    from kd.tasks import Classification

    put_bert(tmp_path)
    random = np.random.default_rng(0)
    shapes = bert_shapes(SMALL, old_names=True)
    tensors = {name: random.normal(size=size).astype(np.float32) for name, size in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    check_model(tmp_path)
    norm = load_model(tmp_path, Classification(demo.LABELS)).model.bert.encoder.layer[1].output.LayerNorm
    np.testing.assert_array_equal(norm.weight.detach(), tensors["bert.encoder.layer.1.output.LayerNorm.gamma"])
    np.testing.assert_array_equal(norm.bias.detach(), tensors["bert.encoder.layer.1.output.LayerNorm.beta"])


def test_a_pickled_checkpoint_is_converted_beside_itself(tmp_path: Path) -> None:
    import torch
    from safetensors.numpy import load_file

    directory = put_bert(tmp_path / "old")
    (directory / "model.safetensors").unlink()
    torch.manual_seed(0)
    state = {name: torch.randn(size) for name, size in bert_shapes(SMALL, old_names=True).items()}
    torch.save(state, directory / "pytorch_model.bin")
    with pytest.raises(UserError, match="kd models convert .* makes one of pytorch_model.bin"):
        check_model(directory)
    convert_directory(directory, tmp_path / "new", None)
    found = load_file(tmp_path / "new" / "model.safetensors")
    name = "bert.embeddings.word_embeddings.weight"
    np.testing.assert_array_equal(found[name], state[name].numpy())
    assert check_model(tmp_path / "new") == check_model(put_bert(tmp_path / "same"))
