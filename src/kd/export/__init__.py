"""Models for other runtimes: written, opened there, and held against the model they come from.

Importing this package is cheap: neither torch nor a runtime is imported.
"""

from kd.export.limits import Limits
from kd.export.target import Target, missing, named_targets, names, stored_target, target

__all__ = ["Limits", "Target", "missing", "named_targets", "names", "stored_target", "target"]
