"""Recommends what reads like the items a user liked last."""

from collections.abc import Sequence

import numpy as np

from stream.learner.parts import PartRanker, check_counts
from stream.learner.text import TextSpace, checked_vectors


class Content(PartRanker):
    r"""Likeness of texts: ``s_k = t . x_k``, with ``t = \sum_d e^{-d / \tau} x_{h_d} / \sqrt{\sum_d e^{-d / \tau}}``.

    x are text vectors of the items (those of the newest adapter, or of the untrained encoder), in the space of their
    first principal components. Without `describe` nothing is known and all scores are 0.

    Parameters
    ----------
    text_dimensions
        Length of x.
    window
        How many of a user's newest liked items count.
    recency
        $\tau$, in events of the user.
    seed
        Unused; every learner has one.

    Examples
    --------
    >>> import numpy as np
    >>> from stream.learner.content import Content
    >>> model = Content(text_dimensions=2)
    >>> model.describe(["tea", "coffee", "spade"], np.array([[1.0, 0.1], [0.9, 0.2], [-1.0, 0.3]]))
    >>> model.learn_one("ann", "tea")
    >>> [item for item, _ in model.top_k("ann", 1)]
    ['coffee']
    """

    def __init__(self, text_dimensions: int = 64, window: int = 50, recency: float = 10.0, seed: int = 0) -> None:
        self.text_dimensions, self.recency = text_dimensions, recency
        check_counts({"window": window})
        self._texts = TextSpace(text_dimensions, window, recency)
        super().__init__((self._texts,), seed, window)

    def describe(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Take the items' text vectors, float [n, h]; the items become candidates.

        Raises
        ------
        InvalidSetting
            When they are not one finite row an id.
        """
        checked = checked_vectors(ids, vectors)
        self._texts.describe(self._rows_of_all(ids), checked)
