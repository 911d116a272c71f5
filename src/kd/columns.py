"""Which columns of a table are the text and the label: as set, or guessed where only one reading is possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kd.errors import UserError
from kd.tables import Table

TEXTS = (
    "text", "texts", "sentence", "review", "review_text", "reviewtext", "content", "body", "comment", "message",
    "tweet", "utterance", "document", "article", "question", "query", "headline", "input",
)  # fmt: skip
LABELS = (
    "label", "labels", "class", "category", "target", "sentiment", "intent", "emotion", "topic", "stars", "rating",
    "polarity", "gold_label", "output",
)  # fmt: skip
PAIRS = (
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("text1", "text2"),
    ("text_a", "text_b"), ("question1", "question2"), ("question", "sentence"), ("question", "passage"),
    ("question", "context"), ("question", "answer"), ("query", "document"), ("query", "passage"),
)  # fmt: skip
NUMBERS = ("score", "scores", "similarity", "similarity_score")  # labels where no other name is there
TOKENS = ("tokens", "words")
TAGS = ("ner_tags", "tags", "labels", "label", "ner")
WITHOUT_LABELS = ("masked_lm", "feature_extraction")
SAMPLE = 1000  # rows that are looked at where names do not tell
WORDS = 3  # a text has at least so many on average, where only that tells it from a label


@dataclass(frozen=True)
class Columns:
    text: tuple[str, ...]  # one, or two for pairs
    label: str | None  # None for tasks without labels

    @property
    def all(self) -> tuple[str, ...]:
        return self.text if self.label is None else (*self.text, self.label)


def as_set(text: str | Sequence[str] | None, label: str | None) -> tuple[tuple[str, ...], str | None]:
    """The two settings, checked: one or two text columns (none: to be guessed), one label column."""
    if text is None or isinstance(text, str | int):
        texts: tuple[str, ...] = () if text is None else (str(text),)
    else:
        texts = tuple(str(name) for name in text)
        if len(texts) not in (1, 2) or len(set(texts)) != len(texts):
            raise UserError(
                f"data.text={list(texts)}: give one column, or two different ones for pairs: [first,second]."
            )
    if label is not None and not isinstance(label, str | int):
        raise UserError(f"data.label={label}: give one column.")
    if label is not None and str(label) in texts:
        raise UserError(f"data.text and data.label are both {str(label)!r}: one column cannot be both.")
    return texts, None if label is None else str(label)


def choose(table: Table, text: str | Sequence[str] | None, label: str | None, task: str | None) -> Columns:
    """The columns to use; a guess is printed. Raises UserError where there is more than one reading, or none."""
    texts, wanted = as_set(text, label)
    if task == "masked_lm" and wanted is not None:
        raise UserError(f"data.label={wanted}: data.task=masked_lm has no labels. Leave it out.")
    table.require(texts, "give data.text")
    table.require([wanted] if wanted is not None else [], "give data.label")
    found = guess(table, texts, wanted, task)
    if not found.text or (found.label is None and task not in WITHOUT_LABELS):
        raise UserError(unclear(table, found, task))
    guesses = [f"data.text={shown(found.text)}"] if not texts else []
    guesses += [f"data.label={found.label}"] if found.label != wanted else []
    if guesses:
        said = f"label {found.label}" if found.label is not None else "no label"
        print(f"Columns: text {shown(found.text)}, {said} (guessed: {', '.join(guesses)})")
    return found


def guess(table: Table, texts: tuple[str, ...], label: str | None, task: str | None) -> Columns:
    """What is not set, as far as it can be seen: no text, or no label, where it cannot."""
    names = list(table.columns)
    if task in WITHOUT_LABELS:
        texts = texts or named_texts(names) or one([name for name in names if is_text(table, name, WORDS)])
        if task == "feature_extraction" and len(texts) == 2 and label is None:
            label = only([name for name in names if name.lower() in NUMBERS])
        return Columns(texts, label)
    tokens = token_columns(table, texts, label, task)
    if tokens is not None:
        return tokens
    for known in (LABELS, NUMBERS):
        if label is None:
            label = only([name for name in names if name.lower() in known and name not in texts])
    texts = texts or named_texts([name for name in names if name != label])
    return Columns(texts, label) if texts and label is not None else by_content(table, texts, label)


def token_columns(table: Table, texts: tuple[str, ...], label: str | None, task: str | None) -> Columns | None:
    """Tokens and tags: for that task, or where both hold lists and no other column reads like a text; else None."""
    if task not in (None, "token_classification"):
        return None
    names = list(table.columns)
    lists = [name for name in names if holds_lists(table, name)]
    rivals = () if texts else named_texts([name for name in names if name not in lists])
    texts = texts or one([name for name in lists or names if name.lower() in TOKENS])
    if label is None:
        label = only([name for name in names if name.lower() in TAGS and name not in texts])
    seen = len(texts) == 1 and texts[0] in lists and label in lists and not rivals
    return Columns(texts, label) if task is not None or seen else None


def holds_lists(table: Table, name: str) -> bool:
    return isinstance(next((value for value in table.column(name, SAMPLE) if value is not None), None), list)


def unclear(table: Table, found: Columns, task: str | None) -> str:
    there = f"{table.where}: it cannot be seen which columns are meant. It has {', '.join(table.columns)}"
    if task in WITHOUT_LABELS:
        return f"{there}: give data.text=COLUMN."
    if task is None and len(table.columns) == 1:
        return (
            f"{table.where} has the column {next(iter(table.columns))} alone, and so no labels. Say what is to be "
            "learned from text without labels: data.task=masked_lm or data.task=feature_extraction."
        )
    example = f"data.text={shown(found.text)}" if found.text else "data.text=COLUMN"
    return f"{there}: give {example} data.label={found.label or 'COLUMN'} (pairs: data.text=[FIRST,SECOND])."


def shown(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"[{','.join(texts)}]"


def only(names: Sequence[str]) -> str | None:
    return names[0] if len(names) == 1 else None


def one(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(names) if len(names) == 1 else ()


def named_texts(names: Sequence[str]) -> tuple[str, ...]:
    """A well-known pair or a well-known name, if there is one and nothing else that could be meant."""
    by_name = {name.lower(): name for name in names}
    known = {name for name in by_name if name in TEXTS}
    pairs = [pair for pair in PAIRS if set(pair) <= set(by_name)]
    if len(pairs) == 1 and known <= set(pairs[0]):
        return tuple(by_name[name] for name in pairs[0])
    if not pairs and len(known) == 1:
        return (by_name[known.pop()],)
    return ()


def by_content(table: Table, texts: tuple[str, ...], label: str | None) -> Columns:
    """The other column where there are two and one is settled; of two unsettled ones the text is what has words."""
    names = list(table.columns)
    if len(names) != 2 or len(texts) > 1:
        return Columns(texts, label)
    words = 1 if label is not None else WORDS
    text = texts[0] if texts else only([name for name in names if name != label and is_text(table, name, words)])
    other = only([name for name in names if name != text])
    if text is None or other is None or (label is None and is_text(table, other, WORDS)):
        return Columns(texts, label)
    if other in {str(value) for value in table.column(other, SAMPLE)}:
        raise UserError(
            f"{table.where}: the first line, {', '.join(names)}, reads like data. Put a line with the columns' names "
            "above it, such as text,label."
        )
    return Columns((text,), other)


def is_text(table: Table, name: str, words: int) -> bool:
    """Whether a column holds letters, and so many words a row on average."""
    values = [value for value in table.column(name, SAMPLE) if value not in (None, "")]
    lettered = [value for value in values if isinstance(value, str) and any(map(str.isalpha, value))]
    return 2 * len(lettered) > len(values) and sum(len(value.split()) for value in lettered) >= words * len(values)
