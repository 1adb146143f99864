"""How much the service takes on: of one request, of one caller, and at once.

Lengths of what is asked (k, history, query text, filters) are part of the interface: `server.serving.recommend`.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from common.errors import InvalidSetting


@dataclass(frozen=True, slots=True)
class Limits:
    """What is refused.

    Parameters
    ----------
    body_bytes
        Longest body; a question is a few kilobytes.
    timeout_s
        A request that takes longer is answered 503; its work goes on to its end, so `at_once` bounds how much of it
        there can be.
    at_once
        Most requests under way; the next is answered 503.
    rate, burst
        Requests a second of each key (or of all callers together, where there are no keys), and how many may come in
        one go; a rate of 0 takes all.

    Raises
    ------
    InvalidSetting
        When a number cannot be.
    """

    body_bytes: int = 1_048_576
    timeout_s: float = 30.0
    at_once: int = 256
    rate: float = 0.0
    burst: int = 100

    def __post_init__(self) -> None:
        if self.body_bytes < 1 or not self.timeout_s > 0 or self.at_once < 1 or self.burst < 1:
            raise InvalidSetting(
                f"body_bytes {self.body_bytes}, timeout_s {self.timeout_s}, at_once {self.at_once}, burst {self.burst}",
                expected="each above 0",
            )
        if not 0 <= self.rate < float("inf"):
            raise InvalidSetting(f"rate {self.rate}", expected="requests a second, or 0 for no limit")


DEFAULT_LIMITS = Limits()


class TokenBuckets:
    """One bucket a caller: it holds `burst` tokens, gets `rate` a second, and each request takes one.

    Parameters
    ----------
    rate
        Above 0.
    burst
        1 or more.
    monotonic
        Seconds that never go back.
    """

    def __init__(self, rate: float, burst: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._monotonic = rate, float(burst), monotonic
        self._buckets: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, caller: str) -> float:
        """Take a token and return 0, or return the seconds until there is one."""
        with self._lock:
            now = self._monotonic()
            tokens, at = self._buckets.get(caller, (self._burst, now))
            tokens = min(self._burst, tokens + (now - at) * self._rate)
            missing = max(0.0, 1.0 - tokens)
            self._buckets[caller] = (tokens if missing else tokens - 1.0, now)
            return missing / self._rate
