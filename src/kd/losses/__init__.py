"""The loss terms that conf/method/ names."""

from kd.losses.attention import AttentionKLLoss, AttentionScoreLoss
from kd.losses.base import Loss
from kd.losses.contrastive import ContrastiveLoss
from kd.losses.correlation import InterClassLoss, IntraClassLoss
from kd.losses.hidden import EmbeddingLoss, HiddenCosineLoss, HiddenLoss
from kd.losses.labels import HardLabelLoss
from kd.losses.patient import PatientLoss
from kd.losses.relational import RelationalAngleLoss, RelationalDistanceLoss, SimilarityLoss
from kd.losses.relations import RelationLoss
from kd.losses.scaled_logits import DynamicTemperatureLoss, StandardizedLogitLoss
from kd.losses.shared_hidden import SharedHiddenLoss
from kd.losses.soft_target import JensenShannonLoss, LogitDistanceLoss, ReverseKLLoss, SoftTargetLoss
from kd.losses.vectors import VectorCosineLoss, VectorDistanceLoss

__all__ = [
    "AttentionKLLoss", "AttentionScoreLoss", "ContrastiveLoss", "DynamicTemperatureLoss", "EmbeddingLoss",
    "HardLabelLoss", "HiddenCosineLoss", "HiddenLoss", "InterClassLoss", "IntraClassLoss", "JensenShannonLoss",
    "LogitDistanceLoss", "Loss", "PatientLoss", "RelationLoss", "RelationalAngleLoss", "RelationalDistanceLoss",
    "ReverseKLLoss", "SharedHiddenLoss", "SimilarityLoss", "SoftTargetLoss", "StandardizedLogitLoss",
    "VectorCosineLoss", "VectorDistanceLoss",
]  # fmt: skip
