"""What every array-backed ranker shares beside its rows: learning, one event or many, and reading."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from river.reco.base import Ranker

from common.errors import InvalidSetting
from stream.learner.admission import learnable_id, weight_of
from stream.learner.best import best_rows
from stream.learner.kernels import rank_among
from stream.learner.params import params_json
from stream.learner.retention import Retention
from stream.learner.rows import UserItemRows


class ArrayRanker(UserItemRows, Ranker):  # type: ignore[misc]  # river has no types
    """A river ranker whose whole state is arrays.

    Subclasses give the scores and the learning; `stream.learner.rows` keeps ids, seen items and durable state. Reading
    never changes anything: an unknown id is answered, not stored. Ids are non-empty strings of at most
    `common.events.MAX_ID_LENGTH` characters; a longer one cannot be learned, and reads as unknown.

    Parameters
    ----------
    seed
        Of everything random.
    window
        How many of a user's newest positive items are kept in order.
    retention
        Which items get a row and how long it is kept; None admits and keeps all.
    """

    def __init__(self, seed: int = 0, window: int = 50, retention: Retention | None = None) -> None:
        if type(seed) is not int:
            raise InvalidSetting(f"seed {seed!r} is {type(seed).__name__}", expected="an int")
        if type(window) is not int or window < 1:
            raise InvalidSetting(f"window {window!r}", expected="an int of 1 or more")
        super().__init__(seed=seed)
        self._empty_rows(window, retention or Retention())

    # --- what subclasses give -------------------------------------------------------------------------------------

    def _scores(self, user: int) -> np.ndarray:
        """Return the score of every known item for a user's row, float32 [n_items]; -1 has no history."""
        raise NotImplementedError

    def _scores_at(self, user: int, at: int | None) -> np.ndarray:
        """Return `_scores` as of a moment; the same for all who do not mind the time."""
        return self._scores(user)

    def _unknown_item_score(self, user: int, item: str) -> float:
        """Return the score the item would have if it were added now."""
        raise NotImplementedError

    def _learn(self, user: int, item: int, weight: float) -> None:
        """Learn from rows; `user` is -1 for a dislike of an unknown user."""
        raise NotImplementedError

    def _restart_item(self, row: int, item: str) -> None:
        """Bring what was learned about an item back to its start; nothing to do where time fades it anyway."""

    def quicken(self) -> None:
        """Learn faster for a while, because the loss rose; nothing to do where there is no rate or it is off."""

    # --- learning ---------------------------------------------------------------------------------------------------

    def learn_one(self, user: str, item: str, y: float = 1.0, x: Mapping[str, object] | None = None) -> None:
        """Learn one event.

        Parameters
        ----------
        user, item
            Their ids.
        y
            Above 0: liked, with this weight. Otherwise disliked, with weight ``-y``, or 1 for 0 (river's False).
            Weights count up to `MAX_WEIGHT`.
        x
            "ts", the event's milliseconds, matters to rows with a time to live (`stream.learner.retention`); all else
            is ignored, the order of arrival is not.

        Raises
        ------
        MalformedEvent
            When an id or y cannot be learned; nothing has changed.
        """
        user_id, item_id, weight = learnable_id("user", user), learnable_id("item", item), weight_of(y)
        for row in self._retention.expired(x.get("ts") if x else None):
            self._restart_item(row, self._item_names[row])
        if item_id not in self._item_rows and not self._retention.admits(item_id):
            self._events += 1
            return
        item_row = self._item(item_id)
        user_row = self._user(user_id) if weight > 0 else self._user_rows.get(user_id, -1)
        self._make_room(1)
        self._learn(user_row, item_row, weight)
        self._retention.touch(item_row)
        self._events += 1

    def learn_many(
        self,
        users: Sequence[str],
        items: Sequence[str],
        ys: Sequence[float] | None = None,
        times: Sequence[int] | None = None,
    ) -> None:
        """Learn events one after the other, exactly as `learn_one` would; `ys` defaults to ones.

        `times` are the events' milliseconds; they matter to rows with a time to live only.

        Raises
        ------
        MalformedEvent
            As for `learn_one`; all events are checked before the first is learned.
        InvalidSetting
            When the lengths differ.
        """
        values = [1.0] * len(users) if ys is None else ys
        stamps: Sequence[int | None] = [None] * len(users) if times is None else times
        if not len(users) == len(items) == len(values) == len(stamps):
            raise InvalidSetting(
                f"{len(users)} users, {len(items)} items, {len(values)} values, {len(stamps)} times",
                expected="as many of each",
            )
        checked = [
            (learnable_id("user", user), learnable_id("item", item), weight_of(y))
            for user, item, y in zip(users, items, values, strict=True)
        ]
        if not self._minds_times:
            self._learn_checked(checked)
            return
        for (user, item, weight), ts in zip(checked, stamps, strict=True):
            self.learn_one(user, item, weight, {"ts": ts})

    @property
    def _minds_times(self) -> bool:
        """Whether events are to be learned one by one, each with its time."""
        return self._retention.on

    def _learn_checked(self, events: list[tuple[str, str, float]]) -> None:
        for user, item, weight in events:
            self.learn_one(user, item, weight)

    # --- reading ----------------------------------------------------------------------------------------------------

    def scores(self, user: str, history: Sequence[str] | None = None, at: int | None = None) -> np.ndarray:
        """Return the score of every known item, float32 [n_items].

        Parameters
        ----------
        user
            Whom for; an unknown user is one without history.
        history
            Items liked, oldest first, instead of what is known of the user: they count as if the user had liked them
            and nothing had been learned from it. Unknown items are left out.
        at
            When it is asked, in milliseconds, for rankers that mind it; None is not long after the user's last like.
        """
        place = self._row_of(user)
        if history is None:
            return self._scores_at(place, at)
        with self._seated(history) as place:
            return self._scores(place)

    def predict_one(self, user: str, item: str, x: Mapping[str, object] | None = None) -> float:
        """Return the score; an unknown user has no history, an unknown item the score it would start with."""
        row, place = self.item_row(item), self._row_of(user)
        return self._unknown_item_score(place, item) if row is None else float(self._scores(place)[row])

    def rank(self, user: str, items: Iterable[str], x: Mapping[str, object] | None = None) -> list[str]:
        """Return the items by falling score, equal ones in the order of their ids."""
        known, place = self.scores(user), self._row_of(user)
        scored = []
        for item in dict.fromkeys(items):
            row = self.item_row(item)
            score = self._unknown_item_score(place, item) if row is None else float(known[row])
            scored.append((-score, item))
        return [item for _, item in sorted(scored)]

    def top_k(
        self,
        user: str,
        k: int = 10,
        *,
        exclude_seen: bool = True,
        candidates: Iterable[str] | None = None,
        history: Sequence[str] | None = None,
        at: int | None = None,
    ) -> list[tuple[str, float]]:
        """Return the k best known items with their scores, best first, ties in the order of the ids.

        Parameters
        ----------
        user
            Whom for; an unknown user is one without history.
        k
            How many at most.
        exclude_seen
            Leave out what the user ever liked.
        candidates
            Choose among these only; unknown ones are left out.
        history
            For a user that is not known: what they liked, oldest first (see `scores`). A known user's own history
            stands.
        at
            When it is asked, as for `scores`.
        """
        if type(k) is not int or k < 1:
            raise InvalidSetting(f"k {k!r}", expected="an int of 1 or more")
        place = self._row_of(user)
        if place < 0 and history is not None:
            with self._seated(history) as place:
                scores, seen = self._scores(place), self._seen(place)
        else:
            scores, seen = self._scores_at(place, at), self._seen(place)
        barred = seen if exclude_seen else seen[:0]
        if candidates is not None:
            allowed = np.zeros(len(scores), dtype=bool)
            allowed[[row for item in candidates if (row := self.item_row(item)) is not None]] = True
            allowed[barred] = False
            barred = np.flatnonzero(~allowed)
        rows, values, tied = best_rows(scores, barred, k)
        ids = self._item_names
        found = [(ids[row], value) for row, value in zip(rows, values, strict=True)]
        if tied:  # everything that ties with the k-th best is there, so the ids decide
            found.sort(key=lambda each: (-each[1], each[0]))
        return found[:k]

    def rank_of(
        self, user: str, item_row: int, k: int, *, exclude_seen: bool = True, among: np.ndarray | None = None,
        at: int | None = None,
    ) -> tuple[int, np.ndarray]:  # fmt: skip
        """Return the item's rank, from 1, ties against it, and the k best rows.

        Parameters
        ----------
        user, item_row, k
            Whom for, the item, and how many of the best.
        exclude_seen
            Among the unseen only.
        among
            Rows to rank among, int64, the item's with them; None takes all.
        at
            When it is asked, as for `scores`.
        """
        hidden = self.seen_rows(user) if exclude_seen else np.zeros(0, dtype=np.int64)
        if among is not None:
            others = np.ones(self.n_items, dtype=bool)
            others[among] = False
            hidden = np.concatenate([hidden, np.flatnonzero(others)])
        rank, best = rank_among(self.scores(user, at=at), hidden, item_row, k)
        return rank, best

    def _params_json(self) -> bytes:
        return params_json(type(self).__name__, self._get_params())
