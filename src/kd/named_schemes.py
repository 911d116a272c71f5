"""The quantization schemes that a run names, each with its settings, without importing torch."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from kd.architecture import container
from kd.errors import UserError, nearest

OF_THE_RUN = ("name", "sensitivity")
AUTO = "auto"


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
    found = {name: node | {k: v for k, v in shared.items() if k in node} for name, node in schemes.items()}
    for name, node in found.items():
        check_keep_float(name, node)
    return found


def check_keep_float(name: str, node: dict[str, Any]) -> None:
    keep = node.get("keep_float", [])
    if keep == AUTO and node.get("qat"):
        raise UserError(
            f"quant.keep_float=auto: which layers suffer is known once the student is trained, and quant={name} is "
            "trained with. Give patterns, such as [*.output.dense], or take a scheme without _qat."
        )
    if keep != AUTO and not (isinstance(keep, list) and all(isinstance(pattern, str) for pattern in keep)):
        raise UserError(
            f"quant.keep_float={keep}:{nearest(str(keep), [AUTO])} Give auto, or a list of patterns of layer "
            "names, such as [*.output.dense]."
        )


def keeping_worst(cfg: DictConfig) -> list[str]:
    """The schemes with keep_float=auto."""
    return [name for name, node in named_schemes(cfg).items() if node.get("keep_float") == AUTO]


def not_taken(key: str, schemes: dict[str, dict[str, Any]], name: str) -> str:
    if not schemes:
        return f"quant.{key} is set, and quant=none quantizes nothing: name a scheme, such as quant=int8."
    known = sorted({own for node in schemes.values() for own in node if own not in ("scheme", "qat")})
    return f"quant.{key}: quant={name} takes no {key}.{nearest(key, known)} It takes {', '.join(known)}."


def looked_at(cfg: DictConfig) -> list[str]:
    """The schemes of which the layers' sensitivity is measured: those that quantize layers singly."""
    singly = [name for name, node in named_schemes(cfg).items() if "keep_float" in node]
    return singly if cfg.quant.sensitivity else keeping_worst(cfg)
