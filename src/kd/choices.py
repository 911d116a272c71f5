"""What settings can be: words, numbers above 0, whole or not. check.py looks, before torch is imported."""

from __future__ import annotations

from kd.architecture import FAMILIES, POOLINGS, SHAPE
from kd.labels import KINDS

PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
CHOICES: dict[str, tuple[str | bool, ...]] = {
    "cache": ("auto", "on", "off"),
    "cache_dtype": ("float16", "bfloat16", "float32"),
    "teacher.pooling": POOLINGS,
    "student.pooling": POOLINGS,
    "student.freeze_embeddings": (True, False),
    "data.truncation": ("cut", "error"),
    "data.task": tuple(KINDS),
    "data.masked_lm.compare": ("masked", "all"),
    "teacher.fine_tune.when": ("auto", "always", "never"),
    "student.keep": ("uniform", "first", "last", "distilbert"),
    "method.patient.layers": ("skip", "last"),
    "method.hidden.layers": ("uniform",),
    "method.balance": ("gradnorm",),
    "method.cosine.layers": ("last",),
    "method.contrastive.same_label": ("exclude", "keep"),
    "method.soft.kind": ("flsw", "cwsm"),
    "method.soft.reduction": ("sum", "mean"),
    "method.patient.reduction": ("sum", "mean"),
    **dict.fromkeys(("method.attention.layers", "method.relations.layers"), ("uniform", "last")),
    "compile": ("auto", "on", "off"),
    "schedule.name": ("linear", "cosine", "constant"),
    "trainer.lazy_embeddings": ("auto", True, False),
    **dict.fromkeys(("trainer.precision", "teacher.fine_tune.precision"), PRECISIONS),
    "trainer.accelerator": ("auto", "cpu", "gpu", "mps"),
    "trainer.strategy": ("auto", "ddp"),
    "teacher.architecture.model_type": tuple(FAMILIES),
    "student.architecture.model_type": tuple(FAMILIES),
    "logger.wandb.mode": ("auto", "online", "offline"),
}
OR_A_WORD = {"data.batch_size": ("auto",)}  # besides a number
OR_A_LIST = (
    "student.keep",
    *(f"method.{term}.layers" for term in ("patient", "hidden", "cosine", "attention", "relations")),
)
OF_METHODS = (
    "method.soft.temperature", "method.soft.beta", "method.soft.gamma", "method.inter.temperature",
    "method.intra.temperature", "method.contrastive.temperature",
)  # fmt: skip
SIZES = (*SHAPE[1:], *(key for family in FAMILIES.values() for key in family.shape))
POSITIVE = (
    "data.limit", "data.batch_size", "data.max_length", "data.source.rows", "data.source.scored_rows",
    "data.tokens_per_batch",
    "data.masked_lm.share", "data.source.validation_rows", "data.validation_share", "teacher.max_length",
    "student.num_layers",
    "teacher.fine_tune.limit",
    "teacher.fine_tune.epochs", "teacher.fine_tune.batch_size", "teacher.fine_tune.lr", "optimizer.lr",
    "trainer.max_epochs", "trainer.accumulate_grad_batches", "trainer.log_every_n_steps", "trainer.devices",
    "trainer.num_nodes", "report.measure_seconds", "quant.group_size", "method.relations.relation_heads",
    *OF_METHODS,
    *(f"{role}.architecture.{key}" for role in ("teacher", "student") for key in SIZES),
)  # fmt: skip
FRACTIONS = (
    "data.masked_lm.share", "data.validation_share", "teacher.fine_tune.lr", "optimizer.lr",
    "report.measure_seconds", *OF_METHODS,
)  # fmt: skip
