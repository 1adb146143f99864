"""The obvious twins of slices, sampled ranks, item-kNN and paired intervals: one event, one candidate at a time."""

import math
from collections.abc import Iterator, Mapping, Sequence

from tests.oracles.ranking import HISTORY, RECENCY, TOP

Clicks = Sequence[tuple[str, int]]


def replay(train: Clicks, test: Clicks) -> Iterator[tuple[str, int, list[int]]]:
    """Yield (user, clicked item, clicks before) of the events that count."""
    clicked: dict[str, list[int]] = {}
    for user, row in train:
        clicked.setdefault(user, []).append(row)
    for user, row in test:
        own = clicked.setdefault(user, [])
        if own and row not in own:
            yield user, row, list(own)
        own.append(row)


def text_score(own: list[int], row: int, vectors: Sequence[Sequence[float]]) -> float:
    newest_first = list(reversed(own[-HISTORY:]))
    return sum(
        math.exp(-age / RECENCY) * sum(x * y for x, y in zip(vectors[one], vectors[row], strict=True))
        for age, one in enumerate(newest_first)
    )


def rank_among(scores: Mapping[int, float], target: int, rivals: Sequence[int]) -> int:
    """Return 1 + the rivals that are not below the target."""
    return 1 + sum(1 for row in rivals if row != target and not scores[row] < scores[target])


def metrics_of(ranks: Sequence[int]) -> tuple[float, float, float]:
    """Return recall, NDCG and MRR at ten."""
    inside = [rank for rank in ranks if rank <= TOP]
    return (
        len(inside) / len(ranks),
        sum(1 / math.log2(1 + rank) for rank in inside) / len(ranks),
        sum(1 / rank for rank in inside) / len(ranks),
    )


def head_slowly(counts: Mapping[int, int]) -> set[int]:
    """Return the most clicked items, taken until they hold half of the clicks; of equals the lower row first."""
    total, held, head = sum(counts.values()), 0, set()
    for row in sorted(counts, key=lambda each: (-counts[each], each)):
        if held >= total / 2 or not counts[row]:
            break
        head.add(row)
        held += counts[row]
    return head


def slices_slowly(
    train: Clicks, test: Clicks, hidden: set[int], vectors: Sequence[Sequence[float]]
) -> dict[str, list[int]]:
    """Return the ranks in each slice, by the text score."""
    candidates = sorted({row for _, row in [*train, *test]})
    counts = {row: sum(1 for _, each in train if each == row and each not in hidden) for row in candidates}
    head = head_slowly(counts)
    found: dict[str, list[int]] = {"cold": [], "cold_in_catalogue": [], "tail": [], "head": [], "all": []}
    for _, row, own in replay(train, test):
        unseen = [each for each in candidates if each not in own]
        scores = {each: text_score(own, each, vectors) for each in unseen}
        rank = rank_among(scores, row, unseen)
        found["all"].append(rank)
        if counts[row] == 0:
            found["cold"].append(rank_among(scores, row, [each for each in unseen if counts[each] == 0]))
            found["cold_in_catalogue"].append(rank)
        else:
            found["head" if row in head else "tail"].append(rank)
    return found


def sampled_recall_expected(ranks: Sequence[int], unseen: Sequence[int], negatives: int) -> float:
    """Return the recall@10 to expect when each full rank is re-drawn among `negatives` others: hypergeometric.

    A rank r among n has r - 1 better rivals out of n - 1; the target is found if at most 9 of them are drawn.
    """
    total = 0.0
    for rank, count in zip(ranks, unseen, strict=True):
        better, others = rank - 1, count - 1
        drawn = min(negatives, others)
        total += sum(
            math.comb(better, k) * math.comb(others - better, drawn - k) / math.comb(others, drawn)
            for k in range(min(TOP - 1, better, drawn) + 1)
            if drawn - k <= others - better
        )
    return total / len(ranks)


def shown_slowly(train: Clicks, test: Clicks, vectors: Sequence[Sequence[float]]) -> set[int]:
    """Return the items in any first ten; there must be no ties."""
    candidates = sorted({row for _, row in [*train, *test]})
    shown: set[int] = set()
    for _, _, own in replay(train, test):
        unseen = [row for row in candidates if row not in own]
        shown |= set(sorted(unseen, key=lambda row: -text_score(own, row, vectors))[:TOP])
    return shown


def neighbour_score(train: Clicks, own: list[int], row: int, gap_decay: float | None, age_decay: float | None) -> float:
    """Return the item-kNN score of an item for a history, from the pairs of the training part."""
    together: dict[tuple[int, int], float] = {}
    for user in {user for user, _ in train}:
        order: list[int] = []
        for each, clicked in train:
            if each == user and clicked not in order:
                order.append(clicked)
        for i, one in enumerate(order):
            for j, other in enumerate(order):
                weight = 1.0 if gap_decay is None else math.exp(-abs(i - j) / gap_decay)
                together[one, other] = together.get((one, other), 0.0) + weight
    total = 0.0
    for age, one in enumerate(reversed(own[-HISTORY:])):
        if one != row and (one, row) in together:
            weight = 1.0 if age_decay is None else math.exp(-age / age_decay)
            total += weight * together[one, row] / math.sqrt(together[one, one] * together[row, row])
    return total


def client_recalls(users: Sequence[str], hits: Sequence[float], owner: Mapping[str, int]) -> list[float]:
    """Return the recall of each client that has an event, lowest first."""
    by_client: dict[int, list[float]] = {}
    for user, hit in zip(users, hits, strict=True):
        if user in owner:
            by_client.setdefault(owner[user], []).append(hit)
    return sorted(sum(own) / len(own) for own in by_client.values())
