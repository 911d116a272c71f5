"""Word embeddings for another vocabulary: pieces that were there keep their rows, new ones get a mean of old ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kd.architecture import family
from kd.errors import UserError
from kd.models import special_ids
from kd.vocabulary import WORD_PIECE, backend_of, known_kind, pieces_of

NEEDED = ("pad", "cls", "sep")
ROLES = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")


def check_tokenizer(before: Any, tokenizer: Any, model_type: str, pairs: bool) -> None:
    """Raises UserError for a tokenizer that a model of this type, which read with ``before``, cannot go on with."""
    for each in (before, tokenizer):
        known_kind(each, "student.vocabulary")
    missing = [name for name in NEEDED if getattr(tokenizer, f"{name}_token_id") is None]
    if missing or not tokenizer("")["input_ids"]:
        what = f"has no {' and no '.join(missing)} token" if missing else "puts no special tokens around a text"
        raise UserError(f"student.vocabulary: the tokenizer {what}, and an encoder of texts needs them: take another.")
    if family(model_type).positions_after_padding and tokenizer.pad_token_id != before.pad_token_id:
        raise UserError(
            f"student.vocabulary: a {model_type}'s positions begin after the id of the padding, which is "
            f"{before.pad_token_id} in its own vocabulary and {tokenizer.pad_token_id} in the other: take one with the "
            "same."
        )
    types = "token_type_ids"
    if pairs and types in family(model_type).inputs and types not in tokenizer.model_input_names:
        raise UserError(
            f"student.vocabulary: the texts are pairs, which a {model_type} tells apart by token types, and this "
            "tokenizer gives none: take one that does."
        )


@torch.no_grad()
def transplant(model: Any, before: Any, tokenizer: Any) -> str:
    """Gives a model that read with the tokenizer ``before`` embeddings for another one. Returns what was done."""
    config = model.config
    old = model.get_input_embeddings()
    there = own_rows(before, tokenizer)
    sources = rows_for(before, tokenizer, there)
    weight = torch.stack([old.weight[rows].mean(0) if rows else old.weight[: len(before)].mean(0) for rows in sources])
    new = nn.Embedding(
        len(weight), weight.shape[1], padding_idx=None if old.padding_idx is None else tokenizer.pad_token_id
    )
    new.weight.copy_(weight)
    model.set_input_embeddings(new)
    config.vocab_size = len(weight)
    for name in special_ids(config):
        setattr(config, name, getattr(tokenizer, name))
    new_ones = len(weight) - len(there)
    fresh = f"{new_ones:,} new, each the mean of the old pieces of its text" if new_ones else "none new"
    return f"{len(old.weight):,} -> {len(weight):,} embeddings, {len(there):,} of them as they were, {fresh}"


def rows_for(before: Any, tokenizer: Any, there: dict[int, int]) -> list[list[int]]:
    """For each id of the tokenizer, the ids of ``before`` whose embeddings make its own; none: the mean of all.

    ``there``: where an id has one of its own (``own_rows``). Of the others the text is cut up as ``before`` does.
    """
    texts = texts_of_pieces(tokenizer)
    names = {i: token for token, i in tokenizer.get_vocab().items()}
    new = [i for i in names if i not in there]
    joined = "" if known_kind(before, "student.vocabulary") == WORD_PIECE else " "  # a word's first piece has the blank
    cut = pieces_of(before, [joined * texts[names[i]][1] + texts[names[i]][0] for i in new]) if new else []
    found = {i: [row] for i, row in there.items()} | dict(zip(new, cut, strict=True))
    return [found.get(i, []) for i in range(max(found) + 1)]


def own_rows(before: Any, tokenizer: Any) -> dict[int, int]:
    """The id in ``before`` of each token that is there: of the same part, or the same text at the same place of a word.

    Two tokenizers of one kind write their pieces alike, bytes that are no text by themselves too.
    """
    old, new = before.get_vocab(), tokenizer.get_vocab()
    kinds = [known_kind(each, "student.vocabulary") for each in (before, tokenizer)]
    if kinds[0] == kinds[1]:
        found = {i: old[token] for token, i in new.items() if token in old}
    else:
        rows = {text: old[token] for token, text in texts_of_pieces(before).items()}
        found = {new[token]: rows[text] for token, text in texts_of_pieces(tokenizer).items() if text in rows}
    for role in ROLES:
        ours, theirs = (getattr(each, f"{role}_token_id") for each in (tokenizer, before))
        if ours is not None and theirs is not None:
            found[ours] = theirs
    return found


def texts_of_pieces(tokenizer: Any) -> dict[str, tuple[str, bool]]:
    """What each token stands for, and whether it begins a word."""
    if known_kind(tokenizer, "student.vocabulary") == WORD_PIECE:
        prefix = backend_of(tokenizer)["model"]["continuing_subword_prefix"]
        return {
            token: (token[len(prefix) :], False) if token.startswith(prefix) else (token, True)
            for token in tokenizer.get_vocab()
        }
    from tokenizers import decoders

    decoder = decoders.ByteLevel()
    texts = {token: decoder.decode([token]) for token in tokenizer.get_vocab()}
    return {token: (text.removeprefix(" "), text.startswith(" ")) for token, text in texts.items()}
