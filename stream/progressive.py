"""Predict, then learn: every event is first a test and then a lesson (prequential evaluation).

The protocol is the value `Protocol`, printed with every result. Contenders see the same events in one pass, each with
its own ids and seen items.
"""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import msgspec
import numpy as np
import river
from river.drift import ADWIN

from common.errors import CheckpointMismatch, EmptyData, InvalidSetting
from common.events import Interaction
from common.progress import Progress, silent
from common.settings import feedback_of
from stream.learner.base import ArrayRanker
from stream.learner.packing import pack_ids, unpack_ids
from stream.learner.rows import grown

CANDIDATES = "every item known at the time, the user's liked ones left out"
TIES = "against the model: an equal score ranks above the target"
REPEATS = "an item the user liked before is learned, not tested"
ALL_CANDIDATES = "every item known at the time"
REPEATS_TESTED = "an item the user liked before is tested too, and may be in the list"
UNKNOWN_ITEMS = "an item not known at the time is a miss"
NEW_USERS = "a user without history is tested like any other"


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a progressive evaluation was done.

    Parameters
    ----------
    warm_events
        The first so many liked events are learned and not tested.
    k
        Length of the list.
    every
        Of the events that may be tested, every so many is (1: all).
    new_users, repeats, candidates, unknown_items, ties, tested
        The rules, in words.
    """

    warm_events: int = 0
    k: int = 10
    every: int = 1
    new_users: str = NEW_USERS
    repeats: str = REPEATS
    candidates: str = CANDIDATES
    unknown_items: str = UNKNOWN_ITEMS
    ties: str = TIES
    tested: str = "liked events, in the order in which they come"

    def with_repeats(self) -> "Protocol":
        """Return the same that tests repeats, and lets them be in the lists."""
        return replace(self, repeats=REPEATS_TESTED, candidates=ALL_CANDIDATES)

    @property
    def tests_repeats(self) -> bool:
        """Whether an item that the user liked before is tested."""
        return self.repeats == REPEATS_TESTED

    def __post_init__(self) -> None:
        if self.warm_events < 0 or self.k < 1 or self.every < 1:
            raise InvalidSetting(
                f"warm_events {self.warm_events}, k {self.k}, every {self.every}", expected="0, 1 and 1 or more"
            )


@dataclass(frozen=True, slots=True)
class Row:
    """What one contender reached.

    Parameters
    ----------
    evaluated
        Events tested.
    recall, ndcg, mrr
        Means over them, each at k; with one relevant item, recall is the hit rate.
    ci95
        Interval of the recall, clustered by user (see `clustered_interval`).
    coverage
        Share of the known items that were in at least one list.
    us_per_event
        Microseconds of scoring and learning an event, in this process, without its first event (it compiles).
    """

    evaluated: int
    recall: float
    ndcg: float
    mrr: float
    ci95: tuple[float, float]
    coverage: float
    us_per_event: float

    def as_json(self, k: int = 10) -> dict[str, Any]:
        """Return the row with the keys of the reports; None where nothing was tested."""
        tested = self.evaluated > 0
        return {
            f"recall@{k}": self.recall if tested else None,
            f"ndcg@{k}": self.ndcg if tested else None,
            f"mrr@{k}": self.mrr if tested else None,
            "coverage": self.coverage if tested else None,
            "us_per_event": self.us_per_event,
            "ci95": list(self.ci95) if tested else None,
            "evaluated": self.evaluated,
        }


@dataclass(frozen=True, slots=True)
class ProgressiveReport:
    """Rows by contender, how they came about, and how often the first contender's loss drifted."""

    protocol: Protocol
    rows: dict[str, Row]
    drift_alarms: int
    learned: int


def clustered_interval(hits: np.ndarray, tested: np.ndarray) -> tuple[float, float]:
    """Return the 95% interval of ``sum(hits) / sum(tested)``, users being independent and their events not.

    The linearised variance of a ratio of sums over clusters (Cochran, Sampling Techniques, 1977, 6.3); a bootstrap
    over users comes to the same. With fewer than two users nothing is known: (0, 1).

    Parameters
    ----------
    hits, tested
        By user, any numeric dtype.
    """
    kept = tested > 0
    users, total = int(kept.sum()), float(tested.sum())
    if users < 2:
        return 0.0, 1.0
    share = float(hits.sum()) / total
    residual = hits[kept].astype(np.float64) - share * tested[kept]
    half = 1.959964 * math.sqrt(float(residual @ residual) * users / (users - 1)) / total
    return max(0.0, share - half), min(1.0, share + half)


class _Tally:
    """The running sums of one contender."""

    def __init__(self) -> None:
        self.sums = np.zeros(3, dtype=np.float64)  # hits, ndcg, mrr
        self.hits = np.zeros(0, dtype=np.int64)  # by user
        self.covered = np.zeros(0, dtype=bool)  # by item row
        self.seconds, self.timed = 0.0, -1  # the first event compiles, and is not timed

    def took(self, seconds: float) -> None:
        self.timed += 1
        if self.timed > 0:
            self.seconds += seconds

    def add(self, user: int, rank: int, best: np.ndarray, k: int, items: int) -> None:
        self.hits, self.covered = grown(self.hits, user + 1), grown(self.covered, items)
        self.covered[best[best >= 0]] = True
        if rank <= k:
            self.sums += (1.0, 1.0 / math.log2(rank + 1), 1.0 / rank)
            self.hits[user] += 1


class Progressive:
    """Tests and teaches contenders, event by event.

    Parameters
    ----------
    contenders
        Name to learner; the first is the one watched for drift.
    protocol
        How.

    Notes
    -----
    ADWIN (Bifet and Gavaldà 2007) watches the loss ``log2(rank) / log2(candidates + 1)`` of the first contender, in
    [0, 1]; each rise it finds is an alarm, and that contender is told to `quicken`. A fall is learning, not drift.
    """

    def __init__(self, contenders: Mapping[str, ArrayRanker], protocol: Protocol) -> None:
        if not contenders:
            raise InvalidSetting("no contender", expected="at least one learner")
        self.contenders = dict(contenders)
        self.protocol = protocol
        self.liked = 0
        self.evaluated = 0
        self.drift_alarms = 0
        self._tallies = {name: _Tally() for name in contenders}
        self._users: dict[str, int] = {}
        self._tested = np.zeros(0, dtype=np.int64)
        self._adwin = ADWIN()

    def step(self, user: str, item: str, weight: float, ts: int | None = None) -> int | None:
        """Test with one liked event, then learn it; return the first contender's rank, or None when not tested.

        `ts` is its time in milliseconds, for learners that drop what is old or mind when they are asked.
        """
        number, self.liked = self.liked, self.liked + 1
        due = number >= self.protocol.warm_events and (number - self.protocol.warm_events) % self.protocol.every == 0
        first = next(iter(self.contenders.values()))
        row = first.item_row(item)
        if not self.protocol.tests_repeats:
            due = due and not (row is not None and row in first.seen_rows(user))
        place = self._count(user) if due else -1
        watched: int | None = None
        for name, learner in self.contenders.items():
            started = time.perf_counter()
            if due:
                rank = self._test(name, learner, user, item, place, ts)
                watched = rank if watched is None else watched
            learner.learn_one(user, item, weight, {"ts": ts})
            self._tallies[name].took(time.perf_counter() - started)
        if watched is not None:
            self._watch(watched, max(watched, first.n_items))
        return watched

    def dislike(self, user: str, item: str, weight: float, ts: int | None = None) -> None:
        """Teach one disliked event; nothing is tested."""
        for name, learner in self.contenders.items():
            started = time.perf_counter()
            learner.learn_one(user, item, -weight, {"ts": ts})
            self._tallies[name].took(time.perf_counter() - started)

    def _count(self, user: str) -> int:
        place = self._users.setdefault(user, len(self._users))
        self._tested = grown(self._tested, place + 1)
        self._tested[place] += 1
        self.evaluated += 1
        return place

    def _test(self, name: str, learner: ArrayRanker, user: str, item: str, place: int, ts: int | None) -> int:
        row = learner.item_row(item)
        if row is None:
            return learner.n_items + 1
        among_unseen = not self.protocol.tests_repeats
        rank, best = learner.rank_of(user, row, self.protocol.k, exclude_seen=among_unseen, at=ts)
        self._tallies[name].add(place, rank, best, self.protocol.k, learner.n_items)
        return rank

    def _watch(self, rank: int, candidates: int) -> None:
        before = self._adwin.estimation
        self._adwin.update(math.log2(rank) / math.log2(candidates + 1))
        if self._adwin.drift_detected and self._adwin.estimation > before:
            self.drift_alarms += 1
            next(iter(self.contenders.values())).quicken()

    def rows(self) -> dict[str, Row]:
        """Return what each contender reached so far."""
        return {name: self._row(name, learner) for name, learner in self.contenders.items()}

    def _row(self, name: str, learner: ArrayRanker) -> Row:
        tally, tests, users = self._tallies[name], max(self.evaluated, 1), len(self._users)
        recall, ndcg, mrr = (float(value) / tests for value in tally.sums)
        return Row(
            evaluated=self.evaluated,
            recall=recall,
            ndcg=ndcg,
            mrr=mrr,
            ci95=clustered_interval(grown(tally.hits, users)[:users], self._tested[:users]),
            coverage=float(tally.covered.sum()) / max(learner.n_items, 1),
            us_per_event=1e6 * tally.seconds / max(tally.timed, 1),
        )

    def state_arrays(self) -> dict[str, np.ndarray]:
        """Return everything but the learners and the clock times; `load_state` takes it back."""
        users = len(self._users)
        state: dict[str, np.ndarray] = {
            "counters": np.array([self.liked, self.evaluated, self.drift_alarms], dtype=np.int64),
            "tested": self._tested[:users].copy(),
            "protocol": np.frombuffer(msgspec.json.encode(asdict(self.protocol)), dtype=np.uint8),
            "river": np.frombuffer(river.__version__.encode(), dtype=np.uint8),
            "adwin": np.frombuffer(_adwin_core(self._adwin).__getstate__(), dtype=np.uint8),
        }
        state["user_id_ends"], state["user_ids"] = pack_ids(self._users)
        for name, tally in self._tallies.items():
            state[f"{name}.sums"] = tally.sums.copy()
            state[f"{name}.hits"] = grown(tally.hits, users)[:users].copy()
            state[f"{name}.covered"] = tally.covered.copy()
        return state

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> bool:
        """Go on from `state_arrays`.

        Returns
        -------
        bool
            False when another river wrote it: then the drift detector starts anew, all else is taken.

        Raises
        ------
        CheckpointMismatch
            When the protocol or the contenders were others; nothing is taken.
        """
        missing = [name for name in self.state_arrays() if name not in arrays]
        if missing:
            raise CheckpointMismatch(f"the checkpoint lacks {missing[0]!r}", mend="use a new store")
        found = msgspec.json.decode(arrays["protocol"].tobytes())
        if found != asdict(self.protocol):
            raise CheckpointMismatch(
                f"the checkpoint was evaluated with {found}",
                expected=str(asdict(self.protocol)),
                mend="use the same evaluation settings, or a new store",
            )
        self.liked, self.evaluated, self.drift_alarms = (int(value) for value in arrays["counters"])
        self._users = {user: n for n, user in enumerate(unpack_ids(arrays["user_id_ends"], arrays["user_ids"]))}
        self._tested = arrays["tested"].copy()
        for name, tally in self._tallies.items():
            tally.sums, tally.hits = arrays[f"{name}.sums"].copy(), arrays[f"{name}.hits"].copy()
            tally.covered = arrays[f"{name}.covered"].astype(bool)
        self._adwin = ADWIN()
        same_river: bool = arrays["river"].tobytes() == river.__version__.encode()
        if same_river:
            _adwin_core(self._adwin).__setstate__(arrays["adwin"].tobytes())
        return same_river


def _adwin_core(adwin: ADWIN) -> Any:
    """Return the detector's compiled part, whose state is plain bytes; the public class offers pickles only."""
    return adwin.__getstate__()["_helper"]


def evaluate_progressively(
    events: Iterable[Interaction],
    contenders: Mapping[str, ArrayRanker],
    *,
    warm_share: float = 0.2,
    k: int = 10,
    use_dislikes: bool = False,
    progress: Progress = silent,
) -> ProgressiveReport:
    """Run the whole evaluation over events that lie in memory; every liked item is a candidate from the start.

    Parameters
    ----------
    events
        In the order in which they are to be learned.
    contenders
        Name to fresh learner.
    warm_share
        Share of the liked events, from the first on, that is learned only.
    k
        Length of the list.
    use_dislikes
        Teach disliked events too, in their places.
    progress
        Told how far it is.

    Raises
    ------
    EmptyData
        When no event likes anything.
    """
    if not 0.0 <= warm_share < 1.0:
        raise InvalidSetting(f"warm_share {warm_share!r}", expected="from 0 to below 1")
    judged = [(event, feedback_of(event)) for event in events]
    liked = sum(feedback.sign > 0 for _, feedback in judged)
    if not liked:
        raise EmptyData("no liked event among the events", expected="at least one")
    items = dict.fromkeys(event.item_id for event, feedback in judged if feedback.sign > 0)
    for learner in contenders.values():
        learner.add_items(items)
    run = Progressive(contenders, Protocol(warm_events=int(warm_share * liked), k=k))
    for event, feedback in judged:
        if feedback.sign > 0:
            run.step(event.user_id, event.item_id, feedback.weight, event.ts)
            if run.liked % 1000 == 0 or run.liked == liked:
                progress("evaluating", run.liked, liked)
        elif feedback.sign < 0 and use_dislikes:
            run.dislike(event.user_id, event.item_id, feedback.weight, event.ts)
    return ProgressiveReport(run.protocol, run.rows(), run.drift_alarms, run.liked)
