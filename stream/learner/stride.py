"""From which events the blend learns its weights: every one while items are few, one in n where they are many.

Such an event costs a score of every item, which all else that is learned does without. What fewer cost in recall@10 on
MovieLens latest-small (9,742 items, 38,864 tests, an interval of 0.008 to either side), learning from one event in

| | 2 | 7 | 20 | 43 |
|---|---|---|---|---|
| without texts | 0.1122 | 0.1125 | 0.1122 | 0.1127 |
| with texts, as hashed words | 0.1195 | 0.1191 | 0.1186 | 0.1175 |
"""

MOST_WEIGHED = 4096
"""An event that teaches the weights is as rare as it takes for an event to cost no more than a score of so many."""
FAR = 2
"""Items beyond those count so many times: rows of so many items are about what a core's own cache holds, and others'
come from memory that all cores share."""


def stride_of(n_items: int) -> int:
    """Return n where the weights are learned from one event in n; 0 of no items."""
    far = max(0, n_items - MOST_WEIGHED)
    return -(-(n_items + (FAR - 1) * far) // MOST_WEIGHED)
