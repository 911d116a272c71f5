"""Files with rows and columns, read as they stand: CSV, TSV, JSON lines, parquet, CoNLL.

Nothing heavy is imported at the top: a missing or empty file is named before torch is loaded.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd.conll import sentences
from kd.errors import UserError, nearest

DELIMITED = {".csv": ",;\t", ".tsv": "\t"}  # what may stand between columns, likeliest first
JSON_LINES = (".jsonl", ".ndjson", ".json")
CONLL = (".conll", ".bio")
PLAIN = ".txt"  # a text a line
SUFFIXES = (*DELIMITED, *JSON_LINES, PLAIN, ".parquet", *CONLL)
PACKED = {".gz": "gzip", ".bz2": "bz2", ".xz": "lzma"}


@dataclass
class Table:
    """Columns of equal length; ``rows`` numbers them as a person sees them in the file, in ``unit``s.

    A column is a list or an Arrow array. ``classes`` has the names behind a column of class numbers, or of lists of
    them (a ClassLabel).
    """

    where: str
    unit: str
    columns: dict[str, Any]
    rows: Sequence[int]
    classes: dict[str, list[str]] = field(default_factory=dict)

    def column(self, name: str, first: int | None = None) -> list[Any]:
        """The values, or the ``first`` few of them."""
        values = self.columns[name][:first]
        return values if isinstance(values, list) else list(values.to_pylist())

    def require(self, names: Sequence[str], mend: str) -> None:
        """Raises UserError for a column that is not there; ``mend`` says what to do."""
        for name in names:
            if name not in self.columns:
                raise UserError(
                    f"{self.where} has no column {name!r}, only {', '.join(self.columns)}: {mend}."
                    f"{nearest(name, self.columns)}"
                )


def is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def suffix_of(path: Path) -> str:
    """``.csv`` of ``reviews.csv`` and of ``reviews.csv.gz``."""
    return (Path(path.stem) if path.suffix.lower() in PACKED else path).suffix.lower()


def stem_of(path: Path) -> str:
    """``reviews`` of both."""
    name = path.stem if path.suffix.lower() in PACKED else path.name
    return Path(name).stem if Path(name).suffix.lower() in SUFFIXES else name


def check_file(path: Path, setting: str) -> None:
    """Raises UserError if there is no such file, or nothing in it, or its suffix says that it cannot be read."""
    shown = f"{setting}={path}"
    if path.is_dir():
        raise UserError(f"{shown} is a directory: name one file in it.")
    if not path.is_file():
        if not path.parent.is_dir():
            raise UserError(f"{shown}: there is no directory {path.parent}.")
        there = [file.name for file in path.parent.iterdir() if suffix_of(file) in SUFFIXES]
        raise UserError(f"{shown}: there is no such file in {path.parent.resolve()}.{nearest(path.name, there)}")
    if suffix_of(path) not in SUFFIXES:
        raise UserError(
            f"{shown}: the suffix {path.suffix!r} does not say what it is. kd reads {', '.join(SUFFIXES)}, each also "
            f"as {', '.join(PACKED)}: rename it, or convert it."
        )
    if path.stat().st_size == 0:
        raise UserError(f"{shown}: the file is empty (0 bytes).")


def read_table(path: Path) -> Table:
    """The rows of one file. Raises UserError for what cannot be read, with the line."""
    suffix = suffix_of(path)
    if suffix == ".parquet":
        table = read_parquet(path)
    elif suffix in DELIMITED:
        table = read_delimited(path, decoded(path), DELIMITED[suffix])
    elif suffix == PLAIN:
        lines = [(i, line.strip()) for i, line in enumerate(decoded(path).split("\n"), start=1) if line.strip()]
        table = Table(str(path), "line", {"text": [line for _, line in lines]}, [i for i, _ in lines])
    elif suffix in CONLL:
        table = Table(str(path), "line", *sentences(str(path), decoded(path)))
    else:
        table = read_json(path, decoded(path))
    if not table.rows:
        raise UserError(f"{path} has no rows{', only a header' if table.columns else ''}.")
    return table


def raw(path: Path) -> bytes:
    packer = PACKED.get(path.suffix.lower())
    try:
        if packer is None:
            return path.read_bytes()
        with importlib.import_module(packer).open(path) as file:
            return bytes(file.read())
    except Exception as error:  # each packer has errors of its own
        raise UserError(f"{path} cannot be read: {error}.") from error


def decoded(path: Path) -> str:
    """The file as text, without the mark that Excel puts first. Raises UserError if it is not UTF-8."""
    content = raw(path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        guess = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1"
        plain = path.with_suffix("") if path.suffix.lower() in PACKED else path
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} in line {line}. Convert it, for instance: "
            f"iconv -f {guess} -t utf-8 {plain} > {plain.with_name(f'{plain.stem}.utf8{plain.suffix}')}"
        ) from error


def records(path: Path, text: str, delimiter: str, quoting: int = csv.QUOTE_MINIMAL) -> Iterator[tuple[int, list[str]]]:
    """``(line on which it begins, fields)`` of each record."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
    while True:
        begins = reader.line_num + 1
        try:
            yield begins, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            said = "a text in quotes begins there and never ends" if "end of data" in str(error) else str(error)
            raise UserError(
                f"{path}, line {begins}: {said}. A quote inside a text is doubled, and the text stands in quotes: "
                '"he said ""yes""".'
            ) from error


def header_of(path: Path, text: str, delimiters: str) -> tuple[str, list[str]]:
    """What stands between the columns, and their names."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = next((d for d in delimiters if d in first), delimiters[0])
    if delimiter != delimiters[0]:
        print(f"{path}: columns are taken to be separated by {'a tab' if delimiter == chr(9) else delimiter}")
    fields = next((fields for _, fields in records(path, text, delimiter) if "".join(fields).strip()), [])
    names = [name.strip() or f"unnamed {i}" for i, name in enumerate(fields, start=1)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{path}: the header names {', '.join(map(repr, twice))} more than once: rename one of them.")
    return delimiter, names


def read_delimited(path: Path, text: str, delimiters: str) -> Table:
    delimiter, names = header_of(path, text, delimiters)
    quoting = csv.QUOTE_NONE if delimiter == "\t" and quotes_are_letters(path, text) else csv.QUOTE_MINIMAL
    columns: list[list[str]] = [[] for _ in names]
    rows: list[int] = []
    blank, header = 0, True
    for line, fields in records(path, text, delimiter, quoting):
        if not "".join(fields).strip():  # spreadsheets leave such rows at the end
            blank += bool(fields)
        elif header:
            header = False
        elif len(fields) != len(names):
            raise UserError(
                f"{path}, line {line} has {len(fields)} fields, the header has {len(names)}. A text with "
                f"{'a tab' if delimiter == chr(9) else repr(delimiter)} in it must stand in double quotes."
            )
        else:
            rows.append(line)
            for column, value in zip(columns, fields, strict=True):
                column.append(value)
    if blank:
        print(f"{path}: blank rows left out: {blank}")
    return Table(str(path), "line", dict(zip(names, columns, strict=True)), rows)


def quotes_are_letters(path: Path, text: str) -> bool:
    """Whether a tab-separated file has no quoting, as many have: every line is a record, but not by quoting's rules."""
    lines = [line for line in io.StringIO(text) if line.strip()]
    if '"' not in text or len({line.count("\t") for line in lines}) != 1:
        return False
    try:
        quoted = sum(1 for _, fields in records(path, text, "\t") if "".join(fields).strip())
    except UserError:
        quoted = -1
    if quoted == len(lines):
        return False
    print(f'{path}: quotes are taken as part of the text, for with " as a mark the lines do not fit')
    return True


def read_json(path: Path, text: str) -> Table:
    """One object a line, or one list of objects."""
    if text.lstrip().startswith("["):
        found, unit = list(enumerate(parsed(path, text, None), start=1)), "row"
    else:  # not splitlines: U+2028 may stand in a text
        lines = enumerate(text.split("\n"), start=1)
        found, unit = [(i, parsed(path, line, i)) for i, line in lines if line.strip()], "line"
    wrong = next((i for i, row in found if not isinstance(row, dict)), None)
    if wrong is not None:
        raise UserError(f'{path}, {unit} {wrong} is not an object such as {{"text": "good", "label": "positive"}}.')
    names = list(dict.fromkeys(name for _, row in found for name in row))
    return Table(str(path), unit, {name: [row.get(name) for _, row in found] for name in names}, [i for i, _ in found])


def parsed(path: Path, text: str, line: int | None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {line or error.lineno} is no JSON ({error.msg}, column {error.colno}). One object a line is "
            "expected."
        ) from error


def read_parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(raw(path)))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as parquet: {str(error).rstrip('.')}.") from error
    names = table.column_names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{path} has the column {', '.join(map(repr, twice))} more than once: rename one of them.")
    stored = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))  # how `datasets` writes features
    classes = named_classes(stored.get("info", {}).get("features", {}))
    return Table(str(path), "row", {name: table.column(name) for name in names}, range(1, len(table) + 1), classes)


def named_classes(features: dict[str, Any]) -> dict[str, list[str]]:
    """The names of each ClassLabel, also within a list, of features as ``datasets`` writes them down."""
    classes = {}
    for name, feature in features.items():
        if isinstance(feature, dict):
            feature = feature.get("feature", feature)  # of a list
        if isinstance(feature, list):  # as older versions wrote one
            feature = feature[0]
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names"):
            classes[name] = list(feature["names"])
    return classes
