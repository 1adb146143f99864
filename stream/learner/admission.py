"""What a learner takes: ids, and how much an event counts."""

import math

import numpy as np

from common.errors import InvalidSetting, MalformedEvent
from common.events import MAX_ID_LENGTH

MAX_WEIGHT = 1000.0
"""Heavier feedback counts as this much: squares of gradients must stay finite."""


def checked_id(kind: str, value: object) -> str:
    """Return an id to ask about.

    Raises
    ------
    InvalidSetting
        When it is no str.
    """
    if not isinstance(value, str):
        raise InvalidSetting(f"{kind} id {value!r} is {type(value).__name__}", expected="a str")
    return value


def learnable_id(kind: str, value: object) -> str:
    """Return an id to learn.

    Raises
    ------
    MalformedEvent
        When it is no str, empty, longer than `common.events.MAX_ID_LENGTH`, or no Unicode text.
    """
    if not isinstance(value, str):
        raise MalformedEvent(f"{kind} id {value!r} is {type(value).__name__}", expected="a str")
    if not 0 < len(value) <= MAX_ID_LENGTH:
        raise MalformedEvent(f"{kind} id of {len(value)} characters", expected=f"1 to {MAX_ID_LENGTH}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise MalformedEvent(f"{kind} id {value!r} is not Unicode text", expected="no lone surrogate") from error
    return value


def number_of(y: object) -> float:
    """Return feedback as a number between ``-MAX_WEIGHT`` and `MAX_WEIGHT`.

    Raises
    ------
    MalformedEvent
        When it is no finite number.
    """
    if type(y) is float and -MAX_WEIGHT <= y <= MAX_WEIGHT:  # nearly always; the rest takes four times as long
        return y
    if not isinstance(y, int | float | np.number | np.bool_) or not math.isfinite(y):
        raise MalformedEvent(f"feedback {y!r}", expected="a finite number", consequence="nothing was learned")
    return min(max(float(y), -MAX_WEIGHT), MAX_WEIGHT)


def weight_of(y: object) -> float:
    """Return how much feedback counts: above 0 a like, below a dislike; 0 is a dislike of 1 (river's False).

    Raises
    ------
    MalformedEvent
        When it is no finite number.
    """
    return number_of(y) or -1.0
