"""The measures of `stream.transfer`, once more: loops over windows, as the paper writes them."""

import numpy as np


def matrix(ranks: np.ndarray, window: np.ndarray, k: int) -> list[list[float]]:
    """Recall on window j after training up to window i; row 0 is before the first."""
    found = []
    for state in ranks:
        row = []
        for number in range(len(ranks) - 1):
            asked = [rank <= k for rank, where in zip(state, window, strict=True) if where == number]
            row.append(sum(asked) / len(asked))
        found.append(row)
    return found


def measures(cells: list[list[float]]) -> dict[str, float]:
    """Lopez-Paz and Ranzato 2017, equations 2 to 4, and the mean of the diagonal."""
    untrained, states = cells[0], cells[1:]
    last = len(states) - 1
    return {
        "average": sum(states[last]) / len(states),
        "plasticity": sum(states[j][j] for j in range(len(states))) / len(states),
        "backward": sum(states[last][j] - states[j][j] for j in range(last)) / last,
        "forward": sum(states[j - 1][j] - untrained[j] for j in range(1, len(states))) / last,
    }
