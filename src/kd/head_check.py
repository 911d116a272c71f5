"""What is checked of heads before a run, without importing torch: poolings, and teachers of vectors."""

from __future__ import annotations

from omegaconf import DictConfig

VECTORS = "feature_extraction"  # the task of that name
OF_TOKENS = ("token_classification", "masked_lm")


def pooling_contradictions(cfg: DictConfig) -> list[str]:
    """A student of layers has the teacher's head."""
    own, teachers = (cfg[role].get("pooling") for role in ("student", "teacher"))
    if cfg.data.task in OF_TOKENS and (own or teachers):
        return [
            f"data.task={cfg.data.task} has an answer for single tokens and none for a whole text, so nothing is "
            "pooled: leave teacher.pooling and student.pooling out."
        ]
    if cfg.student.name != "layers" or own in (None, teachers):
        return []
    return [
        f"student.pooling={own}: student=layers has its teacher's head, and teacher.pooling="
        f"{'null' if teachers is None else teachers}. Set teacher.pooling={own} too, or leave it out."
    ]


def vector_contradictions(cfg: DictConfig) -> list[str]:
    """A teacher of vectors is taken as it is."""
    if cfg.data.task != VECTORS:
        return []
    found = []
    if cfg.teacher.fine_tune.when == "always":
        found.append(
            f"teacher.fine_tune.when=always: data.task={VECTORS} has no labels to fine-tune a teacher on. Set "
            "teacher.fine_tune.when=never."
        )
    if cfg.teacher.get("pooling") == "attention" and cfg.teacher.weights in ("pretrained", "random"):
        found.append(
            f"teacher.pooling=attention has weights to learn, and with data.task={VECTORS} a teacher learns nothing: "
            "set teacher.pooling=cls, mean or max."
        )
    return found
