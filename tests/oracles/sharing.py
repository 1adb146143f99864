"""What several learners learned together, by dictionaries: slow, and plain to see."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from stream.learner.packing import unpack_ids, unpacked_places

State = Mapping[str, np.ndarray]


def ids_of(state: State, kind: str = "item") -> list[str]:
    """Return the ids of a state's rows."""
    return unpack_ids(state[f"{kind}.id_ends"], state[f"{kind}.ids"])


def rows_by_item(state: State, name: str) -> dict[str, np.ndarray]:
    """Return an item array's rows by their items."""
    return dict(zip(ids_of(state), state[name].astype(np.float64), strict=True))


def sum_of_parts(owns: Sequence[State], start: State, name: str) -> dict[str, np.ndarray]:
    """Return ``start + sum of (own - start)`` of an item array, item by item."""
    begins = rows_by_item(start, name)
    found = {item: row.copy() for item, row in begins.items()}
    for own in owns:
        for item, row in rows_by_item(own, name).items():
            found[item] += row - begins[item]
    return found


def pairs_by_item(state: State) -> dict[tuple[str, str], float]:
    """Return the weight of each pair of a state with neighbours."""
    ids = ids_of(state)
    other, weight = unpacked_places(*(state[f"item.neighbours.{name}"] for name in ("filled", "keys", "values")))
    return {
        (ids[row], ids[other[row, place] - 1]): float(weight[row, place])
        for row, place in zip(*np.nonzero(other), strict=True)
    }


def sum_of_pairs(owns: Sequence[State]) -> dict[tuple[str, str], float]:
    """Return the sum of the weights of each pair, as if there were room for all; never below 0."""
    total: dict[tuple[str, str], float] = defaultdict(float)
    for own in owns:
        for pair, weight in pairs_by_item(own).items():
            total[pair] += weight
    return {pair: max(0.0, weight) for pair, weight in total.items()}


def histories(state: State, prefix: str = "user.") -> dict[str, tuple[list[str], list[str]]]:
    """Return each user's newest liked items, oldest first, and the seen ones, newest first."""
    items, found = ids_of(state), {}
    ring, positives = state[f"{prefix}ring"], state[f"{prefix}positives"]
    for row, user in enumerate(ids_of(state, "user")):
        window, count = ring.shape[1], int(positives[row])
        newest = [items[ring[row, number % window]] for number in range(max(0, count - window), count)]
        seen, entry = [], int(state["user.newest"][row])
        while entry >= 0:
            seen.append(items[state["log.item"][entry]])
            entry = int(state["log.previous"][entry])
        found[user] = newest, seen
    return found
