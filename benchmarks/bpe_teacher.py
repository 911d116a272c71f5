"""A teacher that reads byte-level BPE, with case, for a student that reads WordPiece, without.

    KD_STORE=../shared/store python benchmarks/bpe_teacher.py DIR [--data goemotions] [--layers 3] [--width 256]

No RoBERTa has to be downloaded: a tokenizer of RoBERTa's kind is trained on the training texts of the data, and a model
of its shape, small and with random weights, lies beside it in DIR/teacher. DIR/student is every second layer of
MiniLM-L6 with its own vocabulary. Prints the two tokenizers' readings of one text and the commands that fine-tune the
one (once, kept in KD_CACHE) and teach the other; the last command is refused, and says at which token they part.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kd.noise import silence

silence()

import torch  # noqa: E402
from tokenizers import ByteLevelBPETokenizer, processors  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

from kd.build import build, make_task  # noqa: E402
from kd.command_line import compose  # noqa: E402
from kd.from_teacher import student_of_layers  # noqa: E402
from kd.models import load_model, load_tokenizer, random_model  # noqa: E402
from kd.store import Wanted, fetch  # noqa: E402

SPECIAL = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}  # in RoBERTa's order
ENTRIES = 6000
PIECES, LAYERS = "minilm_l6", 3  # whose student, and how many of its layers
TUNE = "when=auto epochs=20 lr=1e-3 batch_size=32"
TRAIN = "trainer=cpu trainer.precision=bf16-mixed quant=int8 logger=csv optimizer.lr=2e-4"


def byte_pairs(texts: Iterable[str]) -> Any:
    bpe = ByteLevelBPETokenizer()  # keeps case; any text can be read, byte by byte if need be
    bpe.train_from_iterator(iter(texts), ENTRIES, special_tokens=[*SPECIAL.values()], show_progress=False)
    ends = (("</s>", bpe.token_to_id("</s>") or 0), ("<s>", bpe.token_to_id("<s>") or 0))
    bpe.post_processor = processors.RobertaProcessing(*ends)
    named = {f"{name}_token": token for name, token in SPECIAL.items()}
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, cls_token="<s>", sep_token="</s>", **named)


def shape_of(tokenizer: Any, layers: int, width: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": width // 64,
        "intermediate_size": 4 * width, "vocab_size": len(tokenizer), "max_position_embeddings": 130,
    }  # fmt: skip


def save(directory: Path, model: Any, tokenizer: Any) -> None:
    """Without a head: each data set gives its own."""
    model.base_model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--data", choices=["banking77", "goemotions"], default="banking77")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--width", type=int, default=256)
    asked = parser.parse_args()
    top: Path = asked.directory.resolve()

    cfg = compose([f"data={asked.data}", "teacher=distilroberta", f"student={PIECES}", "hydra.run.dir=."])
    data = build(cfg.data.source)
    task = make_task(cfg.data.task, data)
    texts = data.splits["train"]["text"]
    tokenizer = byte_pairs(texts)
    shape = shape_of(tokenizer, asked.layers, asked.width)
    torch.manual_seed(0)
    named = {"model_type": "roberta", "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    teacher = random_model(named | shape, task, tokenizer)
    save(top / "teacher", teacher, tokenizer)

    directory = fetch(Wanted("model", PIECES, cfg.student.hub_id, Path(os.path.expanduser(cfg.paths.store))))
    pieces = load_tokenizer(directory)
    save(top / "student", student_of_layers(load_model(directory, task).model, "uniform", LAYERS), pieces)

    example = next(text for text in texts if any(letter.isupper() for letter in text[1:]) and len(text) < 60)
    for role, one in (("teacher", tokenizer), ("student", pieces)):
        print(f"The {role} reads {one.convert_ids_to_tokens(one(example)['input_ids'])}")
    lines = [
        f"data={asked.data}", "teacher=distilroberta", f"teacher.weights={top / 'teacher'}",
        *(f"teacher.architecture.{key}={value}" for key, value in shape.items()),
        *(f"teacher.fine_tune.{setting}" for setting in TUNE.split()),
        f"student={PIECES}", f"student.weights={top / 'student'}", f"student.architecture.num_hidden_layers={LAYERS}",
        *TRAIN.split(),
    ]  # fmt: skip
    for method in ("logit", "pkd", "feature"):
        print(f"\npython train.py {' '.join(lines)} method={method}")


if __name__ == "__main__":
    main()
