"""One file per task family."""

from collections.abc import Mapping
from typing import Any

from kd.tasks.base import Decision, Task
from kd.tasks.classification import Classification
from kd.tasks.features import FeatureExtraction
from kd.tasks.masked import MaskedLM
from kd.tasks.multilabel import Multilabel
from kd.tasks.ordinal import Ordinal
from kd.tasks.regression import Regression
from kd.tasks.tokens import TokenClassification

__all__ = [
    "NAMES", "Classification", "Decision", "FeatureExtraction", "MaskedLM", "Multilabel", "Ordinal", "Regression",
    "Task", "TokenClassification", "restored",
]  # fmt: skip

NAMES: dict[str, type[Task]] = {  # what data.task may say
    "classification": Classification,
    "multilabel": Multilabel,
    "regression": Regression,
    "ordinal": Ordinal,
    "token_classification": TokenClassification,
    "masked_lm": MaskedLM,
    "feature_extraction": FeatureExtraction,
}
KINDS: dict[str, type[Task]] = {kind.__name__: kind for kind in NAMES.values()}


def restored(stored: Mapping[str, Any]) -> Task:
    """The task that ``Task.stored`` described."""
    return KINDS[stored["kind"]](stored["label_names"])
