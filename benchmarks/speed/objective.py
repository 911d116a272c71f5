"""Loss, optimizer and score in plain PyTorch, as the programs other than kd need them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speed.work import Work


def read_models(work: Work) -> tuple[Any, Any]:
    """Teacher and student in float32, with SDPA, transformers' default."""
    from transformers import AutoModelForSequenceClassification

    teacher, student = (
        AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
        for path in (work.path("teacher"), work.student_directory)
    )
    assert teacher.config._attn_implementation == student.config._attn_implementation == "sdpa"
    return teacher.requires_grad_(False).eval(), student.train()


def read_rows(work: Work, split: str, padding: bool | str = False) -> Any:
    """Token ids and labels as a ``datasets.Dataset``; ``padding="max_length"`` pads each row to the longest allowed."""
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoTokenizer

    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(work.path("teacher"))
    rows = Dataset.from_parquet(work.path(f"{split}.parquet"), cache_dir=work.path("datasets"))
    rows = rows.map(
        lambda batch: tokenizer(batch["text"], truncation=True, padding=padding, max_length=work.max_length),
        batched=True,
        remove_columns=["text"],
    )
    return tokenizer, rows.rename_column("label", "labels")


def projections(work: Work, student: Any, teacher: Any) -> nn.ModuleList:
    """One learned map for each pair of layers, if the widths differ; started as kd starts its own."""
    widths = student.config.hidden_size, teacher.config.hidden_size
    if widths[0] == widths[1]:
        return nn.ModuleList(nn.Identity() for _ in work.pairs)
    made = [nn.Linear(*widths, bias=False) for _ in work.pairs]
    for linear in made:
        nn.init.orthogonal_(linear.weight)
    return nn.ModuleList(made)


def soft_loss(work: Work, student: Tensor, teacher: Tensor) -> Tensor:
    """T^2 KL(teacher || student) of logits ``[B, C]``, the mean over rows."""
    log_q, log_p = (F.log_softmax(logits.float() / work.temperature, dim=-1) for logits in (student, teacher))
    return work.temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def patient_loss(work: Work, student: Any, teacher: Any, maps: nn.ModuleList) -> Tensor:
    """Squared distance of [CLS] directions, summed over pairs and width, the mean over rows."""
    total = torch.zeros(())
    for (ours, theirs), project in zip(work.pairs, maps, strict=True):
        mine, wanted = project(student[ours][:, 0].float()), teacher[theirs][:, 0].float()
        total = total + (F.normalize(mine, dim=-1) - F.normalize(wanted, dim=-1)).pow(2).sum(-1).mean()
    return total


def loss(work: Work, student: Any, teacher: Any, maps: nn.ModuleList) -> Tensor:
    """The whole objective from two transformers outputs; the student's holds the loss on the labels."""
    total: Tensor = work.hard * student.loss + work.soft * soft_loss(work, student.logits, teacher.logits)
    if work.pairs:
        total = total + work.patient * patient_loss(work, student.hidden_states, teacher.hidden_states, maps)
    return total


def make_optimizer(work: Work, *modules: nn.Module) -> torch.optim.AdamW:
    """AdamW in its fused form, the fastest on a CPU; no decay for biases and norms."""
    parameters = [p for module in modules for p in module.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": work.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=work.lr, fused=True)


@torch.no_grad()
def probe(work: Work, student: Any, teacher: Any) -> dict[str, float]:
    """What the student has learned: on the validation rows, the loss of logits and labels, and the accuracy."""
    from transformers import DataCollatorWithPadding

    tokenizer, rows = read_rows(work, "validation")
    loader = torch.utils.data.DataLoader(rows, batch_size=64, collate_fn=DataCollatorWithPadding(tokenizer))
    was, total, right = student.training, 0.0, 0
    student.eval()
    for batch in loader:
        labels = batch.pop("labels")
        ours, theirs = student(**batch).logits.float(), teacher(**batch).logits.float()
        value = work.hard * F.cross_entropy(ours, labels) + work.soft * soft_loss(work, ours, theirs)
        total += float(value) * len(labels)
        right += int((ours.argmax(-1) == labels).sum())
    student.train(was)
    return {"loss": total / len(rows), "accuracy": right / len(rows)}
