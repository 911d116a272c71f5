"""Made-up restaurant reviews: text from a small grammar whose labels need several steps of reading.

Deterministic, nothing is downloaded, and no model is asked. A clause gives an opinion about a thing; negations and
doubts turn it round and may be nested; with "but" the second clause decides, with "although" the main one. Opinion
words are many and some are rare. A share of the training labels is wrong, as from a hurried annotator; those of
validation and test are right.
"""

from __future__ import annotations

import random
from typing import Any

from kd.sources import TextData
from kd.store import content_key

VERSION = 1
LABELS = ["negative", "positive"]

THINGS = """soup bread salad pasta rice fish steak curry pizza burger cake coffee tea wine beer juice dessert menu
breakfast dinner service waiter chef owner kitchen music view terrace garden table lamp chair parking price portion
sauce cheese noodle dumpling pancake""".split()

GOOD = """good great lovely tasty fresh warm superb delicious splendid charming pleasant perfect excellent generous
friendly gentle cosy rich crisp tender juicy fragrant honest quick clean bright calm elegant refined balanced creamy
crunchy delightful wonderful fine nice amazing brilliant decent flawless gorgeous heavenly inviting memorable polished
radiant satisfying smooth stellar sublime tidy vivid welcoming zesty admirable divine exquisite graceful hearty
magnificent""".split()

BAD = """bad awful nasty bland stale cold dreadful revolting dismal grim unpleasant ruined terrible stingy rude harsh
cramped poor soggy tough dry smelly dishonest slow dirty dim noisy clumsy crude lopsided watery limp horrible
disgusting foul lousy shocking stupid shabby faulty ugly hellish hostile forgettable careless gloomy disappointing
rough mediocre wretched messy dull unwelcoming sour deplorable ghastly tasteless awkward meagre pathetic""".split()

SAME = """everyone says that|i believe that|we all agree that|it is clear that|my friend insists that|i admit
that""".replace("\n", " ").split("|")
FLIP = """nobody says that|i doubt that|it is false that|no guest would agree that|my friend denies that|it is a myth
that""".replace("\n", " ").split("|")
ADVERBS = ["", "", "really ", "quite ", "rather ", "truly ", "always ", "so "]


def clause(draw: random.Random, depth: int) -> tuple[str, bool]:
    """A clause and whether it speaks well of its thing."""
    if depth > 0:
        inner, good = clause(draw, depth - 1)
        if draw.random() < 0.3:  # below one half: single words say something, the whole says more
            return f"{draw.choice(FLIP)} {inner}", not good
        return f"{draw.choice(SAME)} {inner}", good
    good = draw.random() < 0.5
    words = GOOD if good else BAD
    word = words[min(int(draw.expovariate(1 / 18)), len(words) - 1)]  # the last of each list are rare
    negated = draw.random() < 0.25
    verb = draw.choice(["was not", "was never", "was hardly"]) if negated else "was"
    return f"the {draw.choice(THINGS)} {verb} {draw.choice(ADVERBS)}{word}", good != negated


def review(draw: random.Random) -> tuple[str, int]:
    """A text and its label, 1 for a good opinion."""
    text, good = clause(draw, draw.choice([0, 0, 1, 2]))
    joint = draw.random()
    if joint < 0.3:
        other, _ = clause(draw, 0)
        text = f"{other} but {text}" if joint < 0.15 else f"{text} although {other}"
    return text, int(good)


def split(rows: int, seed: str, noise: float) -> Any:
    from datasets import Dataset

    draw = random.Random(seed)  # a text seed: the same numbers on every machine
    made = [review(draw) for _ in range(rows)]
    labels = [label ^ (draw.random() < noise) for _, label in made]
    return Dataset.from_dict({"text": [text for text, _ in made], "label": labels})


def tokenizer() -> Any:
    """Whole words, lower case, every word of the grammar."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    other = " ".join([*SAME, *FLIP, *ADVERBS, "was not never hardly but although the"]).split()
    words = sorted({*THINGS, *GOOD, *BAD, *other})
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64,
    )  # fmt: skip


def generate(rows: int, scored_rows: int, seed: int, noise: float) -> TextData:
    """``rows`` training texts, and ``scored_rows`` each for validation and test."""
    splits = {
        "train": split(rows, f"train {seed}", noise),
        "validation": split(scored_rows, f"validation {seed}", 0.0),
        "test": split(scored_rows, f"test {seed}", 0.0),
    }
    key = content_key(demo=VERSION, rows=rows, scored_rows=scored_rows, seed=seed, noise=noise)
    return TextData("demo", splits, LABELS, key, tokenizer())
