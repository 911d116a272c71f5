"""metrics.csv and Weights & Biases, online if a key is configured."""

from __future__ import annotations

import netrc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from kd.errors import UserError

Mode = Literal["online", "offline", "disabled"]


def has_wandb_key() -> bool:
    """Whether a key is configured, found without a connection."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("://")[-1].strip("/")
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def wandb_mode(mode: str) -> Mode:
    """``online``, ``offline`` or ``disabled``: what ``logger.wandb.mode`` means here.

    ``auto`` is what WANDB_MODE says, else online with a key and offline without.
    """
    said = f"logger.wandb.mode={mode}"
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if has_wandb_key() else "offline")
        said = f"WANDB_MODE={mode}"
    if mode == "online" and not has_wandb_key():
        raise UserError(
            f"{said}, but no W&B key is configured: run `wandb login`, set WANDB_API_KEY, or take "
            "logger.wandb.mode=offline."
        )
    for known in ("online", "offline", "disabled"):
        if mode == known:
            return known
    raise UserError(f"{said}: known are online, offline, disabled.")


def csv_logger(directory: Path) -> Any:
    from lightning.pytorch.loggers import CSVLogger

    return CSVLogger(save_dir=directory, name="", version="", flush_logs_every_n_steps=100)


def wandb_logger(
    directory: Path, stage: str, config: dict[str, Any], tags: Sequence[str], settings: dict[str, Any]
) -> Any:
    """A W&B run of its own for one stage (``job_type``), with the resolved configuration."""
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    run = wandb.init(
        name=f"{stage}-{directory.name}", dir=directory, project=settings["project"], entity=settings["entity"],
        group=settings["group"], job_type=stage, tags=list(tags), config=config,
        mode=wandb_mode(settings["mode"]),
        settings=wandb.Settings(silent=True, console="off"),
    )  # fmt: skip
    return WandbLogger(experiment=run)
