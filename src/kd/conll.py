"""Files with a token and its tag a line, and a blank line between sentences."""

from __future__ import annotations

from kd.errors import UserError

START = "-DOCSTART-"  # where CoNLL-2003 begins a document


def sentences(path: str, text: str) -> tuple[dict[str, list[list[str]]], list[int]]:
    """``tokens`` from the first column and ``tags`` from the last, a row a sentence; and the line each begins on.

    Columns are separated by a tab where there is one, else by blanks. Raises UserError with the line.
    """
    tokens: list[list[str]] = []
    tags: list[list[str]] = []
    rows: list[int] = []
    width, inside = None, False
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 may be a token
        fields = [field.strip() for field in line.split("\t")] if "\t" in line else line.split()
        if not any(fields) or fields[0] == START:
            inside = False
            continue
        width = width or len(fields)
        if len(fields) != width or width < 2 or not all(fields):
            raise UserError(
                f"{path}, line {number}: {line.strip()!r} is no token with its tag. Each line has "
                f"{'two' if width < 2 else width} columns, a tab or blanks between, and a blank line ends a sentence."
            )
        if not inside:
            rows.append(number)
            tokens.append([])
            tags.append([])
            inside = True
        tokens[-1].append(fields[0])
        tags[-1].append(fields[-1])
    if width is not None and width > 2:
        print(f"{path}: of {width} columns the first is taken as the token, the last as its tag")
    return {"tokens": tokens, "tags": tags}, rows
