"""Fixtures of the stream's tests."""

from tests.stream.crew import log, no_power_cuts

__all__ = ["log", "no_power_cuts"]
