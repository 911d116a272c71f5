"""One file per task family."""

from kd.tasks.base import Task
from kd.tasks.classification import Classification

__all__ = ["Classification", "Task"]
