"""Events that the tests send; no learner is imported for them, so a child process starts at once."""

import numpy as np

from common.events import Action, Interaction

ACTIONS: tuple[Action, ...] = ("click", "click", "purchase", "rating", "skip", "impression", "view")


def some_events(count: int, seed: int = 0) -> list[Interaction]:
    """Return events of all kinds by a few users."""
    rng = np.random.default_rng(seed)
    return [
        Interaction(
            event_id=f"event-{seed}-{number}",
            user_id=f"user-{rng.integers(15)}",
            item_id=f"item-{rng.integers(40)}",
            action=ACTIONS[rng.integers(len(ACTIONS))],
            ts=1_000 * number,
            value=float(rng.integers(1, 6)),
        )
        for number in range(count)
    ]
