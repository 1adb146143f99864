"""Time as a value that is passed, so tests can set it."""

import time
from collections.abc import Callable

Clock = Callable[[], int]
"""Returns wall-clock milliseconds since the epoch."""


def wall_clock() -> int:
    """Return milliseconds since the epoch."""
    return time.time_ns() // 1_000_000
