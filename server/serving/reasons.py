"""Why an item was recommended: parts of its score that add up to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from server.serving.bundle import Bundle
from server.serving.fusion import Fused, HistorySum, Member, MemberKind

ReasonKind = Literal["because-you-liked", "neighbours", "factors", "text", "query", "popularity", "habit"]
NAMED = 3
"""How many liked items are named for one recommendation."""
TRACE = 1e-4
"""A smaller part, of scores around 1, is rounding."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One part of a score.

    Parameters
    ----------
    kind
        "because-you-liked": what one item of the history adds through all members together; "neighbours", "factors"
        and "text": what is left of those members; "query", "popularity" and "habit": the whole member.
    text
        For people; the liked item's title where there is one.
    weight
        Its share; the weights of all reasons add up to the score.
    members
        Through which members it comes; they add up to `weight`.
    """

    kind: ReasonKind
    text: str
    weight: float
    members: Mapping[str, float] = field(default_factory=dict)


def reasons_for(bundle: Bundle, history: np.ndarray, fused: Fused, chosen: np.ndarray) -> list[tuple[Reason, ...]]:
    """Return the reasons of each chosen row, in its order; `fused` is what is said of these rows.

    Members are linear in the items of the history and z-scores are affine, so what one liked item adds (above what it
    adds to the average item) is exact, not an approximation.
    """
    liked, where = np.unique(history, return_inverse=True)
    to_item = np.zeros((len(history), len(liked)))
    to_item[np.arange(len(history)), where] = 1.0
    added = {
        kind: _added(member, member.by_history, chosen) @ to_item
        for kind, member in fused.members.items()
        if member.by_history is not None
    }
    return [
        _one(bundle, fused, position, int(row), liked, {kind: rows[position] for kind, rows in added.items()})
        for position, row in enumerate(chosen)
    ]


def _added(member: Member, by_history: HistorySum, chosen: np.ndarray) -> np.ndarray:
    """Return what each position of the history adds to each chosen item's score through a member, float64 [c, h]."""
    scale = member.coefficient / member.spread
    added: np.ndarray = by_history.above_average(chosen, member.over) * scale[:, None]
    return added


def _one(
    bundle: Bundle, fused: Fused, place: int, row: int, liked: np.ndarray, added: Mapping[MemberKind, np.ndarray]
) -> tuple[Reason, ...]:
    share = {kind: float(member.coefficient[place] * member.z[place]) for kind, member in fused.members.items()}
    together = np.sum(list(added.values()), axis=0) if added else np.zeros(0)
    named: list[tuple[str, dict[str, float]]] = []
    for position in np.argsort(-together, kind="stable")[:NAMED]:
        if together[position] <= 0.0:
            break
        through = {str(kind): float(parts[position]) for kind, parts in added.items() if parts[position] != 0.0}
        named.append((bundle.items.titles[int(liked[position])], through))
        for kind, part in added.items():
            share[kind] -= float(part[position])
    if named:
        # float32 leaves a trace where nothing is left; it goes to the first named item, so the sum still holds
        for kind in [kind for kind, weight in share.items() if 0.0 < abs(weight) < TRACE]:
            named[0][1][kind] = named[0][1].get(kind, 0.0) + share.pop(kind)
    count = int(bundle.counts[row])
    words: tuple[tuple[MemberKind, str], ...] = (
        ("neighbours", f"liked together with {'your other' if named else 'your'} items"),
        ("factors", "what else the clicks say" if named else "what the clicks say"),
        ("text", "like your other recent items" if named else "like your recent items"),
        ("query", "close to your query"),
        ("popularity", f"liked {count} times" if count else "nobody has liked it yet"),
        ("habit", "you liked it before"),
    )
    because = [Reason("because-you-liked", title, sum(parts.values()), parts) for title, parts in named]
    rest = [Reason(kind, text, share[kind], {kind: share[kind]}) for kind, text in words if share.get(kind, 0.0) != 0.0]
    return (*because, *rest)
