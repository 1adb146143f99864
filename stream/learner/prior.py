"""Where item rows start when their texts are known: at what the rows of items with such texts have become."""

from collections.abc import Mapping

import numpy as np

from stream.learner.kernels import ItemRows
from stream.learner.parts import Arrays, check_counts, check_rates
from stream.learner.text import TextSpace

FIRST_FIT = 1_024
"""Bridges are fitted anew after so many events, and each time that number has doubled."""
FEWEST_WARM = 8
"""With fewer items that have a like and a text, there is nothing to fit."""


def ridge(texts: np.ndarray, rows: np.ndarray, weights: np.ndarray, penalty: float) -> np.ndarray:
    """Return W, float64 [d + 1, k], with ``[x, 1] W`` closest to the rows; the last line, the mean, goes unpenalised.

    Parameters
    ----------
    texts, rows, weights
        float [n, d], [n, k], [n].
    penalty
        Of the squares of W's other lines.
    """
    wide = np.hstack([texts, np.ones((len(texts), 1))]).astype(np.float64)
    weighed = wide * weights[:, None]
    cost = penalty * np.eye(wide.shape[1])
    cost[-1, -1] = 1e-6
    found: np.ndarray = np.linalg.solve(wide.T @ weighed + cost, weighed.T @ rows.astype(np.float64))
    return found


class ContentPrior:
    r"""Starts item rows at the ridge projection of their texts, and moves them when it changes.

    With x an item's text row and n its likes, its prior is $p = [x, 1] W$, W being fitted on the rows of the items that
    have likes, weighed by $n / (n + \kappa)$. When texts or W change, $row \leftarrow row + \frac{\kappa}{n + \kappa}
    (p_{new} - p_{old})$: the row of an item without likes is its prior, one with many keeps what it learned, and
    nothing learned is taken away. Before there is a W, or without a text, an item's prior is the random row that it
    started with.

    Parameters
    ----------
    dimensions
        Length of a text row; 0 is off.
    kappa
        How many likes weigh as much as the text.
    penalty
        Of the ridge.
    n_factors
        Length of a row.
    """

    def __init__(self, dimensions: int, kappa: float, penalty: float, n_factors: int) -> None:
        check_counts({"text_dimensions": dimensions}, 0)
        check_rates({"kappa": kappa, "ridge": penalty})
        self._kappa, self._penalty, self._n_factors = float(kappa), float(penalty), n_factors
        self._dimensions = dimensions
        self.texts = TextSpace(max(1, dimensions), 1, 1.0)

    @property
    def on(self) -> bool:
        """Whether rows may have a text."""
        return self._dimensions > 0

    def item_arrays(self) -> Arrays:
        """Return the item arrays, each of no rows: text, and the priors of V and Q; nothing where it is off."""
        if not self.on:
            return {}
        priors = {name: np.zeros((0, self._n_factors), dtype=np.float32) for name in ("history_prior", "factors_prior")}
        return {"text": self.texts.item_arrays()["rows"], **priors}

    def fixed_arrays(self) -> Arrays:
        """Return the fingerprint of the texts; nothing where it is off."""
        return {"described": self.texts.fixed_arrays()["described"]} if self.on else {}

    def wire(self, items: Mapping[str, np.ndarray], fixed: Mapping[str, np.ndarray]) -> None:
        """Take up arrays that were replaced."""
        if self.on:
            self.texts.take(items["text"], fixed["described"])
            self._texts, self._priors = items["text"], (items["history_prior"], items["factors_prior"])

    def start(self, row: int, history: np.ndarray, factors: np.ndarray) -> None:
        """Note where a new item starts."""
        if self.on:
            self._priors[0][row], self._priors[1][row] = history, factors

    def start_of(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the V and Q at which an item starts anew."""
        return self._priors[0][row], self._priors[1][row]

    def due(self, events: int) -> bool:
        """Tell whether W is to be fitted anew after so many events."""
        return self.on and self.texts.described and events >= FIRST_FIT and not events & (events - 1)

    def refit(self, items: ItemRows, counts: np.ndarray, size: int) -> None:
        """Fit W on the rows of the first `size` items, and move all rows with their priors."""
        texts, likes = self._texts[:size], counts[:size].astype(np.float64)
        described = texts.any(axis=1)
        warm = described & (likes > 0)
        if warm.sum() < FEWEST_WARM:
            return
        learned = likes / (likes + self._kappa)
        wide = np.hstack([texts[described], np.ones((int(described.sum()), 1))])
        for rows, priors in zip((items.history, items.factors), self._priors, strict=True):
            bridge = ridge(texts[warm], rows[:size][warm], learned[warm], self._penalty)
            new = wide @ bridge
            change = (1.0 - learned[described])[:, None] * (new - priors[:size][described])
            rows[:size][described] += change.astype(np.float32)
            priors[:size][described] = new.astype(np.float32)
