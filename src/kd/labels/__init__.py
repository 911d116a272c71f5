"""How the labels of each task stand in a table: one small file per kind. Imports no torch."""

from kd.labels.base import Kind
from kd.labels.classes import Classes
from kd.labels.multilabel import Several
from kd.labels.numbers import Numbers, Similarities, Unlabelled
from kd.labels.ordinal import Levels
from kd.labels.tags import Tags

__all__ = ["KINDS", "Kind"]

KINDS: dict[str, type[Kind]] = {  # what data.task may say
    kind.task: kind for kind in (Classes, Several, Numbers, Levels, Tags, Unlabelled, Similarities)
}
