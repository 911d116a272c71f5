"""The quantization schemes that a run names, each with its settings, without importing torch."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from kd.architecture import container
from kd.errors import UserError, nearest

OF_THE_RUN = ("name", "sensitivity")


def named_schemes(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """By name, in the order of the command line: a file of conf/quant/, with what is set for every scheme.

    Raises UserError for a setting that none of them takes.
    """
    quant = container(cfg.quant)
    schemes = {name: node for name, node in quant.items() if isinstance(node, dict)}
    shared = {key: value for key, value in quant.items() if key not in (*schemes, *OF_THE_RUN) and value is not None}
    for key in shared:
        if not any(key in node for node in schemes.values()):
            raise UserError(not_taken(key, schemes, cfg.quant.name))
    return {name: node | {k: v for k, v in shared.items() if k in node} for name, node in schemes.items()}


def not_taken(key: str, schemes: dict[str, dict[str, Any]], name: str) -> str:
    if not schemes:
        return f"quant.{key} is set, and quant=none quantizes nothing: name a scheme, such as quant=int8."
    known = sorted({own for node in schemes.values() for own in node if own not in ("scheme", "qat")})
    return f"quant.{key}: quant={name} takes no {key}.{nearest(key, known)} It takes {', '.join(known)}."
