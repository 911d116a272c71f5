"""kd: distil, quantize and measure BERT-family models.

``kd.load(directory)`` opens any artefact of a run. Importing this package is cheap: torch and transformers
are imported when something needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["UserError", "load"]

if TYPE_CHECKING:
    from kd.artefact import load
    from kd.errors import UserError


def __getattr__(name: str) -> Any:
    if name == "load":
        from kd.artefact import load

        return load
    if name == "UserError":
        from kd.errors import UserError

        return UserError
    raise AttributeError(f"module 'kd' has no attribute {name!r}")
