"""What every array-backed ranker shares: ids, growing arrays, who has seen what, state in and out."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise

import numpy as np
from river.reco.base import Ranker

from common.errors import CheckpointMismatch, InvalidSetting
from common.ids import arrays_sha256
from stream.learner.admission import checked_id, learnable_id, weight_of
from stream.learner.best import best_rows
from stream.learner.kernels import SeenLog, UserRows, rank_among, seen_rows
from stream.learner.lists import Lists, all_histories, all_seen
from stream.learner.params import check_params, params_json
from stream.learner.retention import Retention

_FIRST_CAPACITY = 64


def grown(array: np.ndarray, rows: int) -> np.ndarray:
    """Return the array with room for `rows`, at least doubled when it must grow; new rows are zero."""
    if rows <= len(array):
        return array
    larger = np.zeros((max(rows, 2 * len(array), _FIRST_CAPACITY), *array.shape[1:]), dtype=array.dtype)
    larger[: len(array)] = array
    return larger


def pack_ids(ids: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids as int64 ends and one uint8 array of UTF-8."""
    encoded = [text.encode() for text in ids]
    ends = np.fromiter(accumulate(map(len, encoded)), dtype=np.int64, count=len(encoded))
    return ends, np.frombuffer(b"".join(encoded), dtype=np.uint8)


def unpack_ids(ends: np.ndarray, content: np.ndarray) -> list[str]:
    """Return what `pack_ids` packed."""
    raw = content.tobytes()
    starts = [0, *ends.tolist()]
    return [raw[start:end].decode() for start, end in pairwise(starts)]


class ArrayRanker(Ranker):  # type: ignore[misc]  # river has no types
    """A river ranker whose whole state is arrays.

    Subclasses give the scores and the learning; this class keeps ids, seen items and durable state. Reading never
    changes anything: an unknown id is answered, not stored. Ids are non-empty strings of at most
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
        self.window = window
        self._retention = retention or Retention()
        self._item_rows: dict[str, int] = {}
        self._item_names: list[str] = []
        self._user_rows: dict[str, int] = {}
        self._item_arrays: dict[str, np.ndarray] = {
            "counts": np.zeros(0, dtype=np.int64),
            **self._retention.item_arrays(),
        }
        self._user_arrays: dict[str, np.ndarray] = {
            "ring": np.zeros((0, window), dtype=np.int32),
            "positives": np.zeros(0, dtype=np.int64),
            "newest": np.zeros(0, dtype=np.int64),
        }
        self._log_arrays: dict[str, np.ndarray] = {
            "item": np.zeros(0, dtype=np.int32),
            "previous": np.zeros(0, dtype=np.int64),
        }
        self._fixed_arrays: dict[str, np.ndarray] = self._retention.fixed_arrays()
        self._log_size = 0
        self._events = 0
        self._rewire()

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

    def _start_item(self, row: int, item: str) -> None:
        """Fill in a new item's row."""

    def _restart_item(self, row: int, item: str) -> None:
        """Bring what was learned about an item back to its start; nothing to do where time fades it anyway."""

    def _packed(self, items: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the item arrays as they are stored: what is mostly empty may be packed."""
        return items

    def _unpacked(self, items: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return what `_packed` got, bit for bit."""
        return items

    def _rewire(self) -> None:
        """Take up arrays that were replaced by larger ones."""
        users = self._user_arrays
        self._users = UserRows(users["ring"], users["positives"], users["newest"])
        self._log = SeenLog(self._log_arrays["item"], self._log_arrays["previous"])
        self._retention.wire(self._item_arrays, self._fixed_arrays)

    # --- ids --------------------------------------------------------------------------------------------------------

    @property
    def n_items(self) -> int:
        """How many items are known; each is a candidate."""
        return len(self._item_rows)

    @property
    def n_users(self) -> int:
        """How many users have liked something."""
        return len(self._user_rows)

    @property
    def events(self) -> int:
        """How many events were learned, dislikes included."""
        return self._events

    @property
    def item_ids(self) -> tuple[str, ...]:
        """The items in the order of all item arrays."""
        return tuple(self._item_names)

    @property
    def user_ids(self) -> tuple[str, ...]:
        """The users in the order of all user arrays."""
        return tuple(self._user_rows)

    @property
    def item_counts(self) -> np.ndarray:
        """Positive events an item, int64 [n_items]."""
        counts: np.ndarray = self._item_arrays["counts"][: self.n_items]
        return counts

    def item_row(self, item: str) -> int | None:
        """Return the item's row, or None for an unknown item."""
        return self._item_rows.get(checked_id("item", item))

    def user_row(self, user: str) -> int | None:
        """Return the user's row, or None for an unknown user."""
        return self._user_rows.get(checked_id("user", user))

    def _row_of(self, user: str) -> int:
        """Return the user's row, -1 for an unknown one."""
        return self._user_rows.get(checked_id("user", user), -1)

    def seen_rows(self, user: str) -> np.ndarray:
        """Return the rows of all items the user ever liked, int64, each once, newest first."""
        return self._seen(self._row_of(user))

    def _seen(self, row: int) -> np.ndarray:
        found: np.ndarray = seen_rows(self._log, -1 if row < 0 else int(self._users.newest[row]))
        return found

    def history_rows(self, user: str) -> np.ndarray:
        """Return the rows of the user's last `window` liked items, int64, oldest first, repeats included."""
        row = self.user_row(user)
        return np.zeros(0, dtype=np.int64) if row is None else self._history(row)

    def _history(self, row: int) -> np.ndarray:
        positives = int(self._users.positives[row])
        places = np.arange(max(0, positives - self.window), positives) % self.window
        history: np.ndarray = self._users.ring[row][places].astype(np.int64)
        return history

    def all_users_items(self) -> tuple[Lists, Lists]:
        """Return the items of `history_rows` and, sorted, of `seen_rows`, for all users: see `stream.learner.lists`."""
        return all_histories(self._users, self.n_users), all_seen(self._users, self._log, self.n_users)

    def add_items(self, ids: Iterable[str]) -> None:
        """Make items candidates before anyone clicked them; known ones are left as they are."""
        for item in ids:
            self._item(learnable_id("item", item))

    def _item(self, item: str) -> int:
        row = self._item_rows.get(item)
        if row is None:
            row = self._item_rows[item] = len(self._item_rows)
            self._item_names.append(item)
            if row >= len(self._item_arrays["counts"]):
                self._item_arrays = {name: grown(array, row + 1) for name, array in self._item_arrays.items()}
                self._rewire()
            self._start_item(row, item)
        return row

    def _user(self, user: str) -> int:
        row = self._user_rows.get(user)
        if row is None:
            row = self._user_rows[user] = len(self._user_rows)
            self._make_room_for_user(row)
            self._users.newest[row] = -1
        return row

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

    def _make_room_for_user(self, row: int) -> None:
        if row >= len(self._users.newest):
            self._user_arrays = {name: grown(array, row + 1) for name, array in self._user_arrays.items()}
            self._rewire()

    def _make_room(self, entries: int) -> None:
        if self._log_size + entries > len(self._log_arrays["item"]):
            needed = self._log_size + entries
            self._log_arrays = {name: grown(array, needed) for name, array in self._log_arrays.items()}
            self._rewire()

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

    @contextmanager
    def _seated(self, history: Iterable[str]) -> Iterator[int]:
        """Give a row that has the history: behind the known users and entries, where nothing is state."""
        liked = [row for item in history if (row := self.item_row(item)) is not None]
        row, size, each = self.n_users, self._log_size, list(dict.fromkeys(liked))
        self._make_room_for_user(row)
        self._make_room(len(each))
        users, entries = self._users, slice(size, size + len(each))
        self._log.item[entries], self._log.previous[entries] = (
            each,
            [-1, *range(size, size + len(each) - 1)][: len(each)],
        )
        newest = np.arange(max(0, len(liked) - self.window), len(liked))
        try:
            users.ring[row][newest % self.window] = liked[-self.window :]
            users.positives[row], users.newest[row] = len(liked), size + len(each) - 1 if each else -1
            yield row
        finally:
            users.ring[row], users.positives[row] = 0, 0

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

    # --- state ------------------------------------------------------------------------------------------------------

    def _params_json(self) -> bytes:
        return params_json(type(self).__name__, self._get_params())

    def state_arrays(self) -> dict[str, np.ndarray]:
        """Return the whole state as arrays, cut to what is used; `load_state` takes it back bit for bit."""
        cut = {name: array[: self.n_items] for name, array in self._item_arrays.items()}
        state = {f"item.{name}": array.copy() for name, array in self._packed(cut).items()}
        state |= {f"user.{name}": array[: self.n_users].copy() for name, array in self._user_arrays.items()}
        state |= {f"log.{name}": array[: self._log_size].copy() for name, array in self._log_arrays.items()}
        state |= {f"fixed.{name}": array.copy() for name, array in self._fixed_arrays.items()}
        for kind, rows in (("item", self._item_rows), ("user", self._user_rows)):
            state[f"{kind}.id_ends"], state[f"{kind}.ids"] = pack_ids(rows)
        state["events"] = np.array([self._events], dtype=np.int64)
        state["params"] = np.frombuffer(self._params_json(), dtype=np.uint8)
        return state

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Become the learner that gave `state_arrays`.

        Raises
        ------
        CheckpointMismatch
            When it was another kind of learner, had other parameters, or an array is missing or of another type or
            shape; the learner is unchanged.
        """
        check_params(arrays["params"].tobytes() if "params" in arrays else b"", self._params_json())
        for name, like in self.state_arrays().items():
            found = arrays.get(name)
            kept = 0 if name.startswith("fixed.") else 1  # rows may differ in number, but for those of fixed arrays
            if found is None or found.dtype != like.dtype or found.shape[kept:] != like.shape[kept:]:
                shown = "missing" if found is None else f"{found.dtype.name} {found.shape}"
                raise CheckpointMismatch(
                    f"array {name!r} of the checkpoint is {shown}",
                    expected=f"{like.dtype.name}, from axis {kept} on of shape {like.shape[kept:]}",
                    mend="start with a new store",
                )
        self._take(arrays)

    def _take(self, arrays: Mapping[str, np.ndarray]) -> None:
        ids = {kind: unpack_ids(arrays[f"{kind}.id_ends"], arrays[f"{kind}.ids"]) for kind in ("item", "user")}
        items = self._unpacked({k.removeprefix("item."): v for k, v in arrays.items() if k.startswith("item.")})
        self._item_names = ids["item"]
        self._item_rows = {item: row for row, item in enumerate(self._item_names)}
        self._user_rows = {user: row for row, user in enumerate(ids["user"])}
        self._item_arrays = {name: items[name].copy() for name in self._item_arrays}
        self._user_arrays = {name: arrays[f"user.{name}"].copy() for name in self._user_arrays}
        self._log_arrays = {name: arrays[f"log.{name}"].copy() for name in self._log_arrays}
        self._fixed_arrays = {name: arrays[f"fixed.{name}"].copy() for name in self._fixed_arrays}
        self._log_size = len(self._log_arrays["item"])
        self._events = int(arrays["events"][0])
        self._rewire()

    def state_sha256(self) -> str:
        """Return the SHA-256 of the whole state."""
        return arrays_sha256(self.state_arrays().items())
