"""Words with tags, and raw texts, of uneven lengths: in memory and as the store keeps them."""

from __future__ import annotations

import random
import string
from pathlib import Path
from typing import Any

from datasets import Dataset
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, normalizers, pre_tokenizers, processors

from kd.sources import TextData

TAGS = ["O", "B-group", "I-group", "B-place", "I-place"]
WORDS = """The the a In in saw met Zürich Ost-Berlin O'Neill naïve Łódź UNO river.io @nina #oslo 1984 bank Banking
unbelievable walks walked walking talked talks and , . visits Mont Blanc San Marino""".split()
UNREAD = "\u200d"  # nothing is left of it by BERT's cleaning, and BPE has bytes for it


def tagged(rows: int, seed: int, longest: int = 12) -> Any:
    """Rows of 1 to ``longest`` words, with tags that are not always well-formed; some words are UNREAD."""
    draw = random.Random(seed)
    words = [[draw.choice([*WORDS, UNREAD]) for _ in range(draw.randint(1, longest))] for _ in range(rows)]
    return Dataset.from_dict({"tokens": words, "label": [[draw.randrange(len(TAGS)) for _ in row] for row in words]})


def raw(rows: int, seed: int, longest: int = 24) -> Any:
    draw = random.Random(seed)
    return Dataset.from_dict({"text": [" ".join(draw.choices(WORDS, k=draw.randint(1, longest))) for _ in range(rows)]})


def text_data(make: Any, names: list[str]) -> TextData:
    """``make`` is ``tagged`` or ``raw``."""
    splits = {"train": make(64, 0), "validation": make(24, 1)}
    return TextData(make.__name__, splits, names, f"words-{make.__name__}")


def store(directory: Path, columns: dict[str, str], make: Any, rows: int = 90) -> None:
    """Training and validation rows as parquet files, their columns renamed."""
    directory.mkdir(parents=True)
    for split, count, seed in (("train", rows, 0), ("dev", 24, 1)):
        made = make(count, seed)
        made.rename_columns({new: old for new, old in columns.items() if old != new}).to_parquet(
            directory / f"{split}.parquet"
        )


def word_pieces() -> Any:
    """An uncased BERT tokenizer in small: letters, and some pieces, so that most words are several tokens."""
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted({letter for word in WORDS for letter in word.lower()} | {*string.ascii_lowercase})
    pieces = [*letters, "the", "walk", "talk", "bank", "##ed", "##ing", *(f"##{one}" for one in letters)]
    backend = Tokenizer(models.WordPiece({one: i for i, one in enumerate([*special, *pieces])}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )  # fmt: skip


def byte_pairs() -> Any:
    """A RoBERTa tokenizer in small, cased: bytes and some merges of them."""
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator(iter([" ".join(WORDS)] * 3), vocab_size=300, special_tokens=special, show_progress=False)
    bpe.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>",
        pad_token="<pad>", unk_token="<unk>", mask_token="<mask>",
    )  # fmt: skip
