"""What is exported: an artefact of a run, as a module of named inputs and logits, and rows to calibrate with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from kd.architecture import stored_architecture
from kd.artefact import Artefact, load
from kd.datamodule import TextDataModule

ORDER = ("input_ids", "attention_mask", "token_type_ids")


class Logits(nn.Module):
    """A model with inputs by name and the logits alone as output."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits
        return logits


@dataclass
class Source:
    """``directory`` of the run's artefact; ``rows``: where calibration rows come from, in its tokenizer's encoding."""

    directory: Path
    artefact: Artefact = field(repr=False)
    rows: TextDataModule = field(repr=False)

    @classmethod
    def of(cls, directory: Path, rows: TextDataModule) -> Source:
        return cls(directory, load(directory), rows)

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the student reads, as its tokenizer gives it: a DistilBERT has no token types."""
        given = self.artefact.tokenizer.model_input_names
        return tuple(name for name in ORDER if name in given)

    @property
    def quantized(self) -> bool:
        stored = stored_architecture(self.directory)  # a loaded model's config says nothing of it
        return bool({"quantization_config", "kd_quantization"} & stored.keys())

    @property
    def module(self) -> nn.Module:
        return Logits(self.artefact.model).eval()

    def calibration(self, count: int | None) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        """``count`` training rows, drawn once and for all, in batches of one length: no padding sets ranges.

        Raises UserError if there are fewer.
        """
        assert count is not None, "Target asks for it"
        for batch in self.rows.calibration_batches(count, "calibration_rows"):
            yield {name: batch[name].numpy() for name in self.inputs}
