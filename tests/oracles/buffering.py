"""A run without rounds, said plainly: everything that ever happens in one sorted list, FFA, and a step of the mean."""

from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

Arrays = dict[str, np.ndarray]


def buffered(
    first: Arrays,
    errands: Sequence[tuple[float, float, int, int]],
    change: Callable[[int, int, Arrays], Arrays],
    *,
    buffer: int,
    versions: int,
    most_behind: int,
) -> tuple[list[Arrays], list[list[int]]]:
    """Return the adapters of all versions, the first one included, and how far behind each used update was.

    Parameters
    ----------
    first
        The adapter that the run starts from.
    errands
        (begun at, done at, number, node) of all errands that are ever begun, in the order of their numbers; a node that
        is asked at a moment gets the newest adapter of that moment.
    change
        (number, node, adapter) to the change that the node asks for.
    buffer, versions, most_behind
        K, how many to make, and the most that an update may be behind.
    """
    adapters, made, behinds = [first], [0.0], []
    waiting: list[tuple[Arrays, int]] = []
    for begun, done, number, node in sorted(errands, key=lambda errand: (errand[1], errand[2])):
        if len(adapters) > versions:
            break
        # a version that an answer made is there for the errand that takes this answer's place
        base = max(version for version, moment in enumerate(made) if moment <= begun)
        behind = len(adapters) - 1 - base
        if behind > most_behind:
            continue
        waiting.append((change(number, node, adapters[base]), behind))
        if len(waiting) == buffer:
            new = {name: array.copy() for name, array in adapters[-1].items()}
            for name in waiting[0][0]:
                for index in np.ndindex(new[name].shape):
                    total = sum(Fraction(float(c[name][index])) * Fraction((1 + s) ** -0.5) for c, s in waiting)
                    new[name][index] = float(Fraction(float(new[name][index])) + total / buffer)
            adapters.append(new)
            behinds.append([s for _, s in waiting])
            made.append(done)
            waiting = []
    return adapters, behinds
