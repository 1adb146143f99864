"""Quality where an average hides it: cold items, the tail, and the clients who get least.

A **cold** item has no training click. It is ranked among the cold items alone (`cold`: how well are new items told
apart?) and among all (`cold_in_catalogue`: would one ever be shown?). The **head** are the most clicked items that
together hold half of the training clicks, the **tail** the other items with a training click.
"""

from collections.abc import Mapping

import numpy as np

from server.evaluate import Quality, Ranking, TestEvents, quality_of

HEAD_SHARE = 0.5
QUANTILES = (10, 25, 50, 75, 90)
WORST_SHARE = 0.1

Rows = Mapping[str, Mapping[str, object]]
"""Row name to metric name to value."""


def is_head(popularity: np.ndarray) -> np.ndarray:
    """Return which items are the head, bool [c], for training clicks [c]: the fewest that hold `HEAD_SHARE` of them."""
    order = np.argsort(-popularity, kind="stable")
    before = np.cumsum(popularity[order]) - popularity[order]
    head = np.zeros(len(popularity), dtype=bool)
    head[order[before < HEAD_SHARE * popularity.sum()]] = True
    return head & (popularity > 0)


def slices_of(events: TestEvents, ranking: Ranking, seed: int = 0) -> dict[str, dict[str, object]]:
    """Return the quality of one row in each slice of items; a slice without an event has null for every metric."""
    popularity = events.popularity[events.target]
    cold, head = popularity == 0, is_head(events.popularity)[events.target]
    parts = {
        "cold": (ranking.among_cold, cold),
        "cold_in_catalogue": (ranking.full, cold),
        "tail": (ranking.full, ~cold & ~head),
        "head": (ranking.full, head),
    }
    return {
        name: quality_of(ranks[part], events.user[part], seed).as_json() if part.any() else nothing()
        for name, (ranks, part) in parts.items()
    }


def nothing() -> dict[str, object]:
    """Return the metrics of a slice without an event."""
    empty = Quality(0.0, 0.0, (0.0, 0.0), 0).as_json()
    return {name: 0 if name == "events" else None for name in empty}


def client_slice(events: TestEvents, ranking: Ranking, owner: Mapping[str, int]) -> dict[str, object]:
    """Return how the recall spreads over clients.

    Parameters
    ----------
    events, ranking
        What was measured.
    owner
        User id to client; events of other users (who take no part in training) are left out.

    Returns
    -------
    dict
        ``clients`` (with a test event), ``p10`` to ``p90`` of the recall over clients, each weighing the same, and
        ``worst_10%``, the mean of the lowest tenth, at least one. A client with few events scores low by bad luck too,
        so these compare rows; they do not measure fairness alone.
    """
    client = np.array([owner.get(user, -1) for user in events.users], dtype=np.int64)[events.user]
    known = client >= 0
    if not known.any():
        return {"clients": 0, **{f"p{each}": None for each in QUANTILES}, "worst_10%": None}
    counts = np.bincount(client[known])
    recall = np.sort((np.bincount(client[known], weights=ranking.hits[known]) / np.maximum(counts, 1))[counts > 0])
    worst = recall[: max(1, round(WORST_SHARE * len(recall)))]
    quantiles = {f"p{each}": float(np.percentile(recall, each)) for each in QUANTILES}
    return {"clients": len(recall), **quantiles, "worst_10%": float(worst.mean())}


def by_slice(rows: Mapping[str, Rows]) -> dict[str, dict[str, Mapping[str, object]]]:
    """Turn row name -> slice name -> metrics into slice name -> row name -> metrics."""
    turned: dict[str, dict[str, Mapping[str, object]]] = {}
    for row, slices in rows.items():
        for name, metrics in slices.items():
            turned.setdefault(name, {})[row] = metrics
    return turned
