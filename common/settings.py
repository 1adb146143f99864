"""Settings that several parts must agree on."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from common.events import Interaction


@dataclass(frozen=True, slots=True)
class Feedback:
    """What an interaction says: its sign (+1 liked, -1 disliked, 0 nothing) and its weight (>= 0)."""

    sign: int
    weight: float


NEUTRAL = Feedback(0, 0.0)
DISLIKE = Feedback(-1, 1.0)

ACTION_TABLE: Mapping[str, Feedback] = MappingProxyType(
    {
        "view": Feedback(1, 0.5),
        "click": Feedback(1, 1.0),
        "cart": Feedback(1, 2.0),
        "purchase": Feedback(1, 3.0),
        "rating": Feedback(1, 1.0),
        "skip": Feedback(-1, 0.5),
        "impression": NEUTRAL,
        "return": DISLIKE,
    }
)
"""How each action counts; a rating only from `POSITIVE_RATING` stars up, and against from `NEGATIVE_RATING` down."""

POSITIVE_RATING = 4.0
NEGATIVE_RATING = 2.0


def feedback_of(event: Interaction) -> Feedback:
    """Return what the event says about the user's taste, by `ACTION_TABLE`."""
    if event.action == "rating":
        if event.value >= POSITIVE_RATING:
            return ACTION_TABLE["rating"]
        return DISLIKE if event.value <= NEGATIVE_RATING else NEUTRAL
    return ACTION_TABLE[event.action]


def was_tried(event: Interaction) -> bool:
    """Tell whether the event says that the user has tried the item, whatever came of it: a rating of any stars."""
    return event.action == "rating"


def is_positive(event: Interaction) -> bool:
    """Tell whether the event counts as liking the item."""
    return feedback_of(event).sign > 0
