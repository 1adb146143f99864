"""How long work reports where it is, without knowing who looks."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total); a new stage name starts a new bar, total 0 means unknown."""


def silent(stage: str, done: int, total: int) -> None:
    """Report to nobody."""
