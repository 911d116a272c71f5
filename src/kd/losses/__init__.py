"""The loss terms that conf/method/ names."""

from kd.losses.base import Loss
from kd.losses.contrastive import ContrastiveLoss
from kd.losses.hidden import EmbeddingLoss, HiddenLoss
from kd.losses.labels import HardLabelLoss
from kd.losses.patient import PatientLoss
from kd.losses.relational import RelationalAngleLoss, RelationalDistanceLoss, SimilarityLoss
from kd.losses.soft_target import SoftTargetLoss
from kd.losses.vectors import VectorCosineLoss, VectorDistanceLoss

__all__ = [
    "ContrastiveLoss", "EmbeddingLoss", "HardLabelLoss", "HiddenLoss", "Loss", "PatientLoss", "RelationalAngleLoss",
    "RelationalDistanceLoss", "SimilarityLoss", "SoftTargetLoss", "VectorCosineLoss", "VectorDistanceLoss",
]  # fmt: skip
