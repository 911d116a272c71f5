"""What reaches the user as a paragraph instead of a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can mend. The message says what is wrong, where, and what to do."""


class OccupiedError(UserError):
    """A run directory belongs to another run; nothing may be written there."""


class OtherStepsError(UserError):
    """A saved training takes the steps of its word embeddings in another way than this one."""


class Preempted(Exception):
    """A signal to stop arrived; the state after ``step`` steps is saved (0: none), and the process should end."""

    def __init__(self, step: int, signal_number: int) -> None:
        super().__init__(step, signal_number)
        self.step = step
        self.signal_number = signal_number


def nearest(word: str, names: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` with the name closest to ``word``, or an empty string."""
    names = list(names)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if not close:  # a wrong prefix hides a good match: compare the last parts too
        tails = {name.rsplit(".", 1)[-1]: name for name in names}
        close = [tails[tail] for tail in difflib.get_close_matches(word.rsplit(".", 1)[-1], tails, n=1, cutoff=0.7)]
    return f" Did you mean {close[0]!r}?" if close else ""
