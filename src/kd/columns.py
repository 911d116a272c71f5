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
SAMPLE = 1000  # rows that are looked at where names do not tell
WORDS = 3  # a text has at least so many on average, where only that tells it from a label


@dataclass(frozen=True)
class Columns:
    text: tuple[str, ...]  # one, or two for pairs
    label: str


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


def choose(table: Table, text: str | Sequence[str] | None, label: str | None) -> Columns:
    """The columns to use; a guess is printed. Raises UserError where there is more than one reading, or none."""
    texts, label = as_set(text, label)
    wanted = label
    table.require(texts, "give data.text")
    table.require([label] if label is not None else [], "give data.label")
    guessed = not texts or label is None
    if label is None:
        label = only([name for name in table.columns if name.lower() in LABELS and name not in texts])
    if not texts:
        texts = named_texts([name for name in table.columns if name != label])
    if guessed and (not texts or label is None):
        texts, label = by_content(table, texts, label)
    if not texts or label is None:
        example = "data.text=COLUMN" if not texts else f"data.text={shown(texts)}"
        raise UserError(
            f"{table.where}: it cannot be seen which columns are meant. It has {', '.join(table.columns)}: give "
            f"{example} data.label={label or 'COLUMN'} (pairs: data.text=[FIRST,SECOND])."
        )
    if guessed:
        which = [f"{name}={value}" for name, value, given in (
            ("data.text", shown(texts), as_set(text, None)[0]), ("data.label", label, wanted),
        ) if not given]  # fmt: skip
        print(f"Columns: text {shown(texts)}, label {label} (guessed: {', '.join(which)})")
    return Columns(texts, label)


def shown(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"[{','.join(texts)}]"


def only(names: Sequence[str]) -> str | None:
    return names[0] if len(names) == 1 else None


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


def by_content(table: Table, texts: tuple[str, ...], label: str | None) -> tuple[tuple[str, ...], str | None]:
    """The other column where there are two and one is settled; of two unsettled ones the text is what has words."""
    names = list(table.columns)
    if len(names) != 2 or len(texts) > 1:
        return texts, label
    words = 1 if label is not None else WORDS
    text = texts[0] if texts else only([name for name in names if name != label and is_text(table, name, words)])
    other = only([name for name in names if name != text])
    if text is None or other is None or (label is None and is_text(table, other, WORDS)):
        return texts, label
    if other in {str(value) for value in table.column(other, SAMPLE)}:
        raise UserError(
            f"{table.where}: the first line, {', '.join(names)}, reads like data. Put a line with the columns' names "
            "above it, such as text,label."
        )
    return (text,), other


def is_text(table: Table, name: str, words: int) -> bool:
    """Whether a column holds letters, and so many words a row on average."""
    values = [value for value in table.column(name, SAMPLE) if value not in (None, "")]
    lettered = [value for value in values if isinstance(value, str) and any(map(str.isalpha, value))]
    return 2 * len(lettered) > len(values) and sum(len(value.split()) for value in lettered) >= words * len(values)
