"""An export as torch sees a model, so that what scores and predicts a student scores and predicts an export."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from kd.export.session import Session, open_session


class SessionModel(nn.Module):
    """Logits of a session, on the CPU. ``config`` is that of the model it was made from."""

    def __init__(self, session: Session, config: Any) -> None:
        super().__init__()
        self.session, self.config = session, config

    @classmethod
    def load(cls, directory: Path, threads: int | None = None) -> SessionModel:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        return cls(open_session(directory, threads), config)

    def get_output_embeddings(self) -> None:
        """None: there is no layer to leave tokens out before."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Tensor) -> Any:
        """Inputs ``[B, L]``, those that the session reads; a mask or token types that are not given are as ever."""
        given = {"input_ids": input_ids, **{name: one for name, one in inputs.items() if one is not None}}
        given["attention_mask"] = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if "token_type_ids" in self.session.inputs and "token_type_ids" not in given:
            given["token_type_ids"] = torch.zeros_like(input_ids)
        logits = self.session({name: one.cpu().numpy() for name, one in given.items()})
        return SimpleNamespace(logits=torch.from_numpy(logits))
