"""Losses on two ranks with unequal numbers of rows: what each is documented to be. (test_totals.py has whole runs.)"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ranks import on_two_ranks
from torch import Tensor

from kd.losses import (
    ContrastiveLoss,
    DynamicTemperatureLoss,
    InterClassLoss,
    IntraClassLoss,
    Loss,
    RelationalAngleLoss,
    RelationalDistanceLoss,
    ReverseKLLoss,
    SimilarityLoss,
)
from kd.tasks import Classification

CONFIG: Any = SimpleNamespace(num_hidden_layers=2, hidden_size=4)
LABELS = torch.tensor([0, 1, 2, 0, 1, 1, 2, 2])
WHOLE, SHARES = slice(0, 8), [slice(0, 3), slice(3, 8)]
AS_ONE: dict[str, Loss] = {  # those of one rank with all rows
    "reverse_kl": ReverseKLLoss(1.0, 2.0), "inter": InterClassLoss(1.0, 2.0), "contrastive": ContrastiveLoss(1.0, 0.5),
}  # fmt: skip
APART: dict[str, Loss] = {  # those of each rank's own rows, added up
    "distance": RelationalDistanceLoss(1.0), "angle": RelationalAngleLoss(1.0), "similarity": SimilarityLoss(1.0),
    "intra": IntraClassLoss(1.0, 2.0), "flsw": DynamicTemperatureLoss(1.0, 4.0, "flsw"),
    "cwsm": DynamicTemperatureLoss(1.0, 4.0, "cwsm"),
}  # fmt: skip
BOTH: dict[str, Loss] = {"symmetric": ContrastiveLoss(1.0, 0.5, symmetric=True)}
Found = tuple[Tensor, Tensor]


def rows(width: int, seed: int) -> Tensor:
    return torch.randn(8, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_share(loss: Loss, share: slice) -> Found:
    """Of some of eight rows: the sum, and its gradient at the student's states or logits."""
    states, logits = rows(4, 0)[share].requires_grad_(), rows(3, 1)[share].requires_grad_()
    student = {"cls/2": states, "logits": logits}
    teacher = {"cls/2": rows(4, 2)[share], "logits": rows(3, 3)[share]}
    loss.setup(CONFIG, CONFIG, Classification(["a", "b", "c"]))
    value, _ = loss(student, teacher, {"labels": LABELS[share]})
    (gradient,) = torch.autograd.grad(value, student[loss.student_signals[0]])
    return value.detach(), gradient


def of_rank(rank: int) -> dict[str, Found]:
    return {name: of_share(loss, SHARES[rank]) for name, loss in (AS_ONE | APART | BOTH).items()}


def added(parts: list[Found]) -> Found:
    return parts[0][0] + parts[1][0], torch.cat([gradient for _, gradient in parts])


@pytest.mark.slow
def test_two_ranks(tmp_path: Path) -> None:
    ranks = on_two_ranks(of_rank, tmp_path)
    for name, loss in (AS_ONE | APART).items():
        found = added([rank[name] for rank in ranks])
        whole, apart = of_share(loss, WHOLE), added([of_share(loss, share) for share in SHARES])
        torch.testing.assert_close(found, whole if name in AS_ONE else apart)
        if name not in ("reverse_kl", "inter"):  # which are the same either way
            assert not torch.allclose(whole[1], apart[1], rtol=1e-3)
    total = added([rank["symmetric"] for rank in ranks])[0]
    one_way, other_way = of_share(AS_ONE["contrastive"], WHOLE)[0], ContrastiveLoss(1.0, 0.5)
    other_way.setup(CONFIG, CONFIG, Classification(["a", "b", "c"]))
    backwards = [
        other_way({"cls/2": rows(4, 2)[share]}, {"cls/2": rows(4, 0)[share]}, {"labels": LABELS[share]})[0]
        for share in SHARES
    ]
    torch.testing.assert_close(total, (one_way + backwards[0] + backwards[1]) / 2)
