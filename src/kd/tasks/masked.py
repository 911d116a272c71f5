"""The token behind a mask: masked language modelling on raw text (Devlin et al. 2019), for students of any task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from kd.errors import UserError
from kd.losses.functional import full
from kd.tasks.base import RESAMPLES, Decision, Reader
from kd.tasks.probabilities import Categorical
from kd.units import UNLABELLED, MaskUnits, Units, logits_at

LIKELIEST = 5  # tokens that a prediction names


class Mean(Metric):
    """Of digests ``[N, 2]``: the perplexity ``exp(mean of the loss)``, or the share of tokens guessed right."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, figure: str) -> None:
        super().__init__()
        self.figure = figure
        for name in ("total", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, digest: Tensor, labels: Tensor) -> None:
        found = digest[:, 0] if self.figure == "perplexity" else digest[:, 1] == labels
        self.total += found.double().sum()
        self.count += len(labels)

    def compute(self) -> Tensor:
        mean = self.total / self.count.clamp(min=1)
        return mean.exp() if self.figure == "perplexity" else mean


class MaskedLM(Categorical):
    """``share`` of a row's tokens is chosen; ``compare`` says where logits are held against the teacher's: at the
    ``masked`` tokens, or at ``all`` real ones (Sanh et al. 2019 do that by default).
    """

    select = "perplexity"
    higher_is_better = False
    labelled = False
    unit = "hidden tokens"
    same_tokens = True
    label_formula = "cross-entropy of the hidden token"
    divergence_formula = (
        "T^2 KL(softmax(teacher / T) || softmax(student / T)), T = {T}, summed over tokens of the vocabulary"
    )

    def __init__(self, label_names: Sequence[str] = (), share: float = 0.15, compare: str = "masked") -> None:
        super().__init__([])
        self.share, self.compare = share, compare

    def settings(self) -> dict[str, Any]:
        return {"share": self.share}

    def auto_class(self) -> Any:
        from transformers import AutoModelForMaskedLM

        return AutoModelForMaskedLM

    def config_fields(self) -> dict[str, Any]:
        return {}

    def units(self, encodings: Mapping[str, Any], tokenizers: Mapping[str, Any], seed: int) -> Units:
        if tokenizers["student"].mask_token_id is None:
            raise UserError("data.task=masked_lm: the tokenizer has no mask token, so nothing can be masked.")
        everywhere = self.compare == "all" and "teacher" in encodings  # a teacher alone has nothing to compare with
        return MaskUnits(encodings, tokenizers, seed, self.share, everywhere)

    def label_loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the tokens behind masks: sum, and their number."""
        total = F.cross_entropy(full(logits), labels, reduction="sum", ignore_index=UNLABELLED)
        return total, (labels != UNLABELLED).sum().float()

    def digest(self, logits: Tensor, labels: Tensor) -> Tensor:
        """``[N, 2]``: the loss of each token, and the token guessed; whole vocabularies would fill the memory."""
        loss = F.cross_entropy(full(logits), labels, reduction="none")
        return torch.stack([loss, logits.argmax(-1).to(loss.dtype)], -1)

    def metrics(self, decision: Decision | None = None) -> MetricCollection:
        return MetricCollection({name: Mean(name) for name in ("perplexity", "accuracy")}, compute_groups=False)

    def answers(self, logits: Tensor, decision: Decision) -> Tensor:
        return logits[:, 1]

    def chance(self, labels: Tensor) -> tuple[float, str]:
        counts = torch.bincount(labels).double()
        shares = counts[counts > 0] / len(labels)
        return float((-(shares * shares.log()).sum()).exp()), "knowing how often each token is, and no text,"

    def interval(self, score: float, logits: Tensor, labels: Tensor, decision: Decision) -> tuple[float, float]:
        """The bootstrap over tokens, of the mean loss."""
        generator, losses = torch.Generator().manual_seed(0), logits[:, 0].double()
        means = [
            losses[torch.randint(len(losses), (len(losses),), generator=generator)].mean() for _ in range(RESAMPLES)
        ]
        low, high = torch.stack(means).quantile(torch.tensor([0.025, 0.975]).double()).exp().tolist()
        return low, high

    def example(self, tokenizer: Any, pairs: bool) -> str:
        return f'"a {tokenizer.mask_token} text"'

    def stored(self) -> dict[str, Any]:
        return {"kind": type(self).__name__, "label_names": []}

    @torch.no_grad()
    def predict(self, reader: Reader, texts: Sequence[Any], decision: Decision) -> list[dict[str, Any]]:
        """Of each text the text with its masks filled, and of each mask the likeliest ``fills`` with probabilities."""
        return [self.filled(reader, text) for text in texts]

    def filled(self, reader: Reader, text: str) -> dict[str, Any]:
        tokenizer = reader.tokenizer
        encoded = tokenizer(text, truncation=True, max_length=reader.max_length, return_tensors="pt")
        places = (encoded["input_ids"].flatten() == tokenizer.mask_token_id).nonzero()[:, 0]
        if not len(places):
            raise UserError(f"This model fills in {tokenizer.mask_token}, and {text!r} has none (within its length).")
        chances = full(logits_at(reader.model, places, **encoded)).softmax(-1).topk(LIKELIEST)
        fills = []
        for tokens, values in zip(chances.indices.tolist(), chances.values.tolist(), strict=True):
            fill: dict[str, float] = {}
            for token, chance in zip(tokens, values, strict=True):
                fill.setdefault(tokenizer.decode([token]).strip(), chance)  # of tokens that read alike, the likeliest
            fills.append(fill)
        best = text
        for fill in fills:
            best = best.replace(tokenizer.mask_token, next(iter(fill)), 1)
        return {"label": best, "fills": fills}
