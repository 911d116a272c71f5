"""A tokenizer with fewer pieces: those that a text uses, and what keeps every other text readable."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kd.errors import UserError

BATCH = 1000  # texts tokenised at once
WORD_PIECE, BYTE_PAIRS = "WordPiece", "byte-level BPE"


def backend_of(tokenizer: Any) -> dict[str, Any]:
    """What tokenizer.json says."""
    found: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return found


def kind(backend: Mapping[str, Any]) -> str:
    """WORD_PIECE, BYTE_PAIRS, or what else its model is."""
    model = backend["model"]
    if model["type"] != "BPE":
        return str(model["type"])
    steps = backend["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    marked = model["continuing_subword_prefix"] or model["end_of_word_suffix"]
    return BYTE_PAIRS if not marked and any(step.get("type") == "ByteLevel" for step in steps) else "BPE"


def known_kind(tokenizer: Any, where: str) -> str:
    found = kind(backend_of(tokenizer))
    if found not in (WORD_PIECE, BYTE_PAIRS):
        raise UserError(
            f"{where}: kd can take a vocabulary apart if it is {WORD_PIECE} or {BYTE_PAIRS}, and this tokenizer is "
            f"{found}. Leave student.vocabulary out."
        )
    return found


def texts_of(rows: Any) -> Iterator[list[str]]:
    """All texts of a split, both columns of pairs, in batches."""
    for column in ("text", "text_pair", "tokens"):
        if column in rows.column_names:
            for start in range(0, len(rows), BATCH):
                found = rows[start : start + BATCH][column]
                yield [" ".join(text) for text in found] if column == "tokens" else found


def pieces_of(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Uncut, without special tokens."""
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    return found


def trimmed(tokenizer: Any, rows: Any) -> tuple[Any, bool]:
    """A tokenizer of the pieces that the rows' texts use, and whether it cuts these texts up as before.

    All special and added tokens stay, and all pieces of one character (or byte), so that no text becomes unknown
    that was not. Ids keep their order. Texts are read whole, whatever the length that a model reads.
    """
    found = known_kind(tokenizer, "student.vocabulary=trim")
    backend, ids = backend_of(tokenizer), tokenizer.get_vocab()
    names = {i: token for token, i in ids.items()}
    kept = {token["content"] for token in backend["added_tokens"]} | {*tokenizer.all_special_tokens}
    for texts in texts_of(rows):
        kept |= {names[i] for row in pieces_of(tokenizer, texts) for i in row}
    kept |= single_pieces(backend["model"]) if found == WORD_PIECE else byte_pieces(backend["model"], kept)
    order = sorted(kept, key=ids.__getitem__)
    small = with_vocabulary(tokenizer, backend, {token: i for i, token in enumerate(order)})
    places = {ids[token]: i for i, token in enumerate(order)}
    same = all(
        [places[i] for i in before] == after
        for texts in texts_of(rows)
        for before, after in zip(pieces_of(tokenizer, texts), pieces_of(small, texts), strict=True)
    )
    return small, same


def single_pieces(model: Mapping[str, Any]) -> set[str]:
    """WordPiece's pieces of one character, and the longer ones with a character that has none of its own."""
    prefix = model["continuing_subword_prefix"]

    def alone(piece: str) -> list[str]:
        inside = piece.startswith(prefix) and len(piece) > len(prefix)
        text = piece[len(prefix) :] if inside else piece
        return [prefix + letter if inside or place else letter for place, letter in enumerate(text)]

    vocab = model["vocab"].keys()
    return {piece for piece in vocab if len(parts := alone(piece)) == 1 or not {*parts} <= vocab}


def byte_pieces(model: Mapping[str, Any], used: set[str]) -> set[str]:
    """The bytes, and what the used pieces are merged of, step by step: so the way to each of them is the same."""
    made_of: dict[str, set[str]] = {}
    for left, right in model["merges"]:
        made_of.setdefault(left + right, set()).update((left, right))
    found, open_pieces = {token for token in model["vocab"] if len(token) == 1}, list(used & made_of.keys())
    while open_pieces:
        for part in made_of.get(open_pieces.pop(), set()) - found:
            found.add(part)
            open_pieces.append(part)
    return found


def with_vocabulary(tokenizer: Any, backend: dict[str, Any], ids: dict[str, int]) -> Any:
    """The tokenizer with these of its tokens, under these ids, wherever it names ids."""
    from tokenizers import Tokenizer

    model = backend["model"]
    model["vocab"] = {token: ids[token] for token in model["vocab"] if token in ids}
    if "merges" in model:
        model["merges"] = [
            pair for pair in model["merges"] if all(part in model["vocab"] for part in (*pair, "".join(pair)))
        ]
    for token in backend["added_tokens"]:
        token["id"] = ids[token["content"]]
    backend["padding"] = backend["truncation"] = None  # the state that the last call left behind
    renumber(backend["post_processor"] or {}, ids)
    small = copy.deepcopy(tokenizer)
    small._tokenizer = Tokenizer.from_str(json.dumps(backend))
    if small.get_vocab() != ids:
        raise UserError(
            "student.vocabulary=trim: this tokenizer numbers its tokens in a way that kd cannot keep up. Leave "
            "student.vocabulary out."
        )
    return small


def renumber(processor: dict[str, Any], ids: Mapping[str, int]) -> None:
    """The ids of [CLS], [SEP] and their like, in what completes a text; a sequence of such steps has them inside."""
    for step in processor.get("processors", ()):
        renumber(step, ids)
    for name in ("cls", "sep"):
        if name in processor:
            processor[name][1] = ids[processor[name][0]]
    for special in processor.get("special_tokens", {}).values():
        special["ids"] = [ids[token] for token in special["tokens"]]
