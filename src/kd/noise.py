"""Keeps the terminal to what is ours: libraries say nothing below an error."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

QUIET = (
    "torchao", "torch.utils._pytree", "lightning.pytorch", "lightning.fabric", "lightning_fabric", "datasets",
    "lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators", "transformers", "httpx", "httpx2",
    "wandb",
)  # fmt: skip


def silence() -> None:
    """Call before torch, transformers or lightning are imported."""
    if os.environ.get("KD_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the same for the libraries
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """The same for the time of a block, in a program that is not ours."""
    from transformers.utils import logging as transformers_logging

    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    silence_transformers()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def silence_transformers() -> None:
    """Its bars for loading and saving weights; needs transformers, so it comes after ``silence``."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
