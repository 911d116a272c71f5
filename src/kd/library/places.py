"""Where a thing can come from, in the order that it is tried: the hub, Google's archives, a mirror."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlparse

from kd.errors import UserError, nearest
from kd.library.known import ARCHIVES, Known
from kd.network import hub_endpoint
from kd.store import Wanted

ORDER = ("hub", "archive", "mirror")


@dataclass(frozen=True)
class Place:
    """``layout`` is how files lie there: as on the ``hub``, in an ``archive``, or as in a ``store``.

    ``endpoint``: of a hub, the part of the address that comes before the name.
    """

    kind: str
    layout: str
    address: str
    endpoint: str = ""


def places(wanted: Wanted, known: Known) -> list[Place]:
    """Every place that may have it. Raises UserError for a KD_MIRROR or KD_SOURCES that is none."""
    return [place for kind in order() for place in of_kind(kind, wanted, known)]


def of_kind(kind: str, wanted: Wanted, known: Known) -> Iterator[Place]:
    """A mirror may be laid out as a store, as the hub, or as Google's archives below ``bert_models``."""
    base = {"hub": hub_endpoint(), "archive": ARCHIVES, "mirror": mirror()}[kind]
    if base is None:
        return
    if kind == "mirror":
        yield Place(kind, "store", f"{base}/{wanted.directory.parent.name}/{wanted.directory.name}")
    if kind != "archive" and wanted.hub_id:
        what = "" if wanted.kind == "model" else "datasets/"
        yield Place(kind, "hub", f"{base}/{what}{wanted.hub_id}", base)
    if kind != "hub" and known.archive and wanted.kind == "model":
        yield Place(kind, "archive", f"{base if kind == 'archive' else f'{base}/bert_models'}/{known.archive}.zip")


def mirror() -> str | None:
    address = os.environ.get("KD_MIRROR", "").rstrip("/")
    if address and urlparse(address).scheme not in ("http", "https"):
        raise UserError(f"KD_MIRROR={address}: give an address that begins with http:// or https://")
    return address or None


def order() -> list[str]:
    """KD_SOURCES, or all of them."""
    named = [word.strip() for word in os.environ.get("KD_SOURCES", ",".join(ORDER)).split(",") if word.strip()]
    for word in named:
        if word not in ORDER:
            raise UserError(f"KD_SOURCES names {word!r}.{nearest(word, ORDER)} Known: {', '.join(ORDER)}.")
    return named
