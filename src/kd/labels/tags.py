"""A tag for each token: BIO, as names or as numbers of names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from kd.errors import UserError, nearest
from kd.labels.base import Kind, check_alike
from kd.parts import Part, check_letters
from kd.tables import Table, is_missing

BIO = re.compile(r"O|[BI]-\S.*")
OTHER_SCHEMES = re.compile(r"[ESLU]-\S.*")


class Tags(Kind):
    task = "token_classification"

    def part(self, table: Table) -> Part:
        part = super().part(table)
        for row, (tokens,), tags in zip(part.rows, part.texts, part.labels, strict=True):
            if tags is not None and len(tokens) != len(tags):
                raise UserError(
                    f"{place(table, row)}: the row has {counted(len(tokens), 'token')} (column "
                    f"{self.columns.text[0]!r}), but {counted(len(tags), 'tag')} (column {self.column!r}). Each token "
                    "has one tag: correct that row."
                )
        return part

    def texts(self, table: Table) -> list[tuple[Any, ...]]:
        found = []
        (column,) = self.columns.text[:1]
        if len(self.columns.text) > 1:
            raise UserError(f"data.text=[{','.join(self.columns.text)}]: tokens stand in one column, give one.")
        for row, tokens in zip(table.rows, rows_of(table, column), strict=True):
            wrong = [token for token in tokens or () if not isinstance(token, str)]
            if wrong:
                raise UserError(
                    f"{place(table, row)}: {wrong[0]!r} in the column {column!r} is no token: write it as text."
                )
            check_letters(table, row, *tokens or ())
            found.append((tuple(tokens or ()),))
        return found

    def read(self, table: Table) -> list[Any]:
        names = table.classes.get(self.column) or self.wanted
        return [
            None if tags is None else self.named(table, row, tags, names)
            for row, tags in zip(table.rows, rows_of(table, self.column), strict=True)
        ]

    def named(self, table: Table, row: int, tags: Sequence[Any], names: Sequence[str] | None) -> tuple[str, ...] | None:
        """A row's tags by name; None where all are -1, as in test files without labels."""
        if tags and all(tag == -1 for tag in tags):
            return None
        found = tuple(self.name(place(table, row), tag, names) for tag in tags)
        for i, tag in enumerate(found, start=1):
            if not BIO.fullmatch(tag):
                refuse_tag(f"{place(table, row)}, token {i}", tag)
            if self.wanted is not None and tag not in self.wanted:
                raise UserError(
                    f"{place(table, row)}, token {i}: data.label_names={self.wanted} lacks the tag {tag!r}."
                    f"{nearest(tag, self.wanted)} List each tag of the data."
                )
        return found

    def name(self, where: str, tag: Any, names: Sequence[str] | None) -> str:
        if isinstance(tag, str):
            return tag
        if names is None:
            raise UserError(
                f"{where}: the tags in the column {self.column!r} are numbers, such as {tag!r}, and nothing says what "
                "they mean: data.label_names=[O,B-PER,I-PER,...] names 0, 1, 2 ..."
            )
        if isinstance(tag, bool) or not isinstance(tag, int) or tag not in range(len(names)):
            raise UserError(
                f"{where}: the tag {tag!r} in the column {self.column!r} is no name and no whole number from 0 to "
                f"{len(names) - 1}, of which the {len(names)} tags are {', '.join(names[:10])}."
            )
        return str(names[tag])

    def settle(self, train: Part) -> None:
        found = sorted({tag for tags in train.labels for tag in tags}, key=lambda tag: (tag != "O", tag))
        self.names = list(self.wanted or train.table.classes.get(self.column) or found)
        for name in self.names:
            if not BIO.fullmatch(name):
                refuse_tag("data.label_names" if self.wanted else train.table.where, name)
        if len(found) < 2:
            raise UserError(f"{train.table.where}: every token has the tag {found[0]!r}: there is nothing to learn.")
        check_alike(train.table.where, self.names)

    def convert(self, part: Part) -> None:
        lone = sum(alone(before, tag) for tags in part.labels for before, tag in zip(("O", *tags), tags, strict=False))
        if lone:
            print(
                f"{part.table.where}: {lone} I- tags follow no B- or I- of their type; each begins an entity, as "
                "seqeval reads them"
            )

    def singles(self, label: Sequence[str]) -> Iterable[str]:
        return label

    def number(self, label: Sequence[str]) -> list[int]:
        numbers = {name: i for i, name in enumerate(self.names)}
        return [numbers[tag] for tag in label]

    def data(self, part: Part) -> dict[str, list[Any]]:
        """``tokens`` and ``label``, lists of equal length in every row."""
        return {"tokens": [list(tokens) for (tokens,) in part.texts], "label": [self.number(t) for t in part.labels]}


def alone(before: str, tag: str) -> bool:
    return tag.startswith("I-") and before[2:] != tag[2:]


def counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def place(table: Table, row: int) -> str:
    return f"{table.where}, {table.unit} {row}"


def rows_of(table: Table, column: str) -> list[list[Any] | None]:
    """A column of lists. Raises UserError for anything else."""
    values = [None if is_missing(value) else value for value in table.column(column)]
    for row, value in zip(table.rows, values, strict=True):
        if value is not None and not isinstance(value, list):
            raise UserError(
                f"{place(table, row)}: the column {column!r} holds {type(value).__name__} values; tokens and tags are "
                "lists of equal length, in JSON lines or parquet, or one token and its tag a line in a .conll file."
            )
    return values


def refuse_tag(where: str, tag: str) -> None:
    other = (
        " It looks like IOBES or BILOU: write E-x and L-x as I-x, S-x and U-x as B-x."
        if OTHER_SCHEMES.fullmatch(tag)
        else " Correct it, or name another column with data.label."
    )
    raise UserError(f"{where}: the tag {tag!r} is not of the BIO scheme, which has O, B-x and I-x.{other}")
