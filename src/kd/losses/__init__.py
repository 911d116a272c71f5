"""The loss terms that conf/method/ names."""

from kd.losses.attention import AttentionKLLoss, AttentionScoreLoss
from kd.losses.base import Loss
from kd.losses.hidden import EmbeddingLoss, HiddenLoss
from kd.losses.labels import HardLabelLoss
from kd.losses.patient import PatientLoss
from kd.losses.relations import RelationLoss
from kd.losses.shared_hidden import SharedHiddenLoss
from kd.losses.soft_target import SoftTargetLoss
from kd.losses.vectors import VectorCosineLoss, VectorDistanceLoss

__all__ = [
    "AttentionKLLoss", "AttentionScoreLoss", "EmbeddingLoss", "HardLabelLoss", "HiddenLoss", "Loss", "PatientLoss",
    "RelationLoss", "SharedHiddenLoss", "SoftTargetLoss", "VectorCosineLoss", "VectorDistanceLoss",
]  # fmt: skip
