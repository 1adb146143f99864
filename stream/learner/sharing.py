"""What several learners of one kind learned together: each has its own users, all have the same items.

Everything here is about states, as `ArrayRanker.state_arrays` gives them. A learner's *own* state is the one that holds
what it learned from its own events alone; the *total* of several own states holds what all of them learned. What was
learned since a learner took up a total is the difference between the two, so

    own = own before + (learner now - total taken up),    total = start + sum over learners of (own - start).

Sums of cumulative parts: adding up the same states again changes nothing, and the newest state of a learner takes the
place of its older ones (a state-based CRDT; Shapiro et al., INRIA RR-7506, 2011). Added up are counts, factors with
their AdaGrad sums, the taste about texts, pairs and masses of popularity; weights of a blend and habits are averaged,
by events. Texts stay as each learner was told them, and users are nobody else's.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np

from common.errors import InvalidSetting
from stream.learner.base import ArrayRanker
from stream.learner.packing import pack_ids, packed_places, unpack_ids, unpacked_places
from stream.learner.pair_sums import add_pairs, scales_of
from stream.learner.parts import Arrays
from stream.learner.text import change_of

State = Mapping[str, np.ndarray]
_REMEMBERED = 64
"""Of so many states the items are at hand: they seldom change."""
_ROWS = ("history", "factors", "bias", "history_sum", "factors_sum", "bias_sum")
_MATRIX, _TILT = "fixed.factors.matrix", "fixed.factors.tilt"
_TASTE = frozenset({_MATRIX, _TILT, f"{_MATRIX}_sum", f"{_TILT}_sum"})
_ADDED = frozenset(
    {"item.counts", "item.neighbours.counts", *(f"item.{name}" for name in _ROWS)}
    | {f"item.factors.{name}" for name in _ROWS}
)
_AVERAGED = frozenset({"fixed.weights", "fixed.habit.worth", "fixed.habit.sums"})
_MASS, _SINCE = "item.popularity.mass", "fixed.popularity.since"
_PAIRS = ("item.neighbours.filled", "item.neighbours.keys", "item.neighbours.values")
_COUNTS, _SCALE = "item.neighbours.counts", "item.neighbours.scale"
_TEXTS, _DESCRIBED = "item.content.rows", "fixed.content.described"
_KEPT = frozenset({_TEXTS, _DESCRIBED, "fixed.hasty_until"})
_IDS = frozenset({"item.id_ends", "item.ids", "events", "params"})
_KNOWN = _ADDED | _TASTE | _AVERAGED | _KEPT | _IDS | {_MASS, _SINCE, _SCALE, *_PAIRS}
_HOLD_ROWS = frozenset({"user.ring", "user.tried.ring", "user.kept", "log.item"})
_HOLD_ENTRIES = frozenset({"user.newest", "log.previous"})


class Sharing:
    """Adds up states of learners that have the settings of one that learned nothing.

    Parameters
    ----------
    blank
        It gets to know the items of all states, and its order of them is that of each total.

    Raises
    ------
    InvalidSetting
        When what such a learner knows about items cannot be added up.
    """

    def __init__(self, blank: ArrayRanker) -> None:
        self._blank = blank
        self._known: OrderedDict[tuple[bytes, bytes], np.ndarray] = OrderedDict()
        self._table: tuple[State, tuple[np.ndarray, np.ndarray]] | None = None
        unknown = sorted(
            name for name in blank.state_arrays() if name not in _KNOWN and not name.startswith(("user.", "log."))
        )
        if unknown:
            raise InvalidSetting(
                f"a {type(blank).__name__} that keeps {', '.join(unknown)}",
                expected="one whose items can be shared: without a time to live, a threshold for new items or values",
                mend="let one worker learn it, without --scale-out",
            )

    # --- adding up ------------------------------------------------------------------------------------------------

    def total(self, owns: Sequence[State], texts: State | None = None) -> Arrays:
        """Return what all learned: the item and fixed arrays of a state, its ids and its number of events.

        Parameters
        ----------
        owns
            One own state a learner; their order does not matter but for rounding.
        texts
            A state that was told the texts in whose terms the taste is to be; the taste of learners that were told
            others is left out. None takes those of the first that was told any.
        """
        places = [self._places(own) for own in owns]
        start = self._blank.state_arrays()
        told = texts if texts is not None else next((own for own in owns if _described(own)), None)
        alike = [told is None or self._alike(own, told) for own in owns]
        found: Arrays = {name: start[name] for name in ("item.id_ends", "item.ids", "params")}
        for name, first in start.items():
            if name in _ADDED:
                found[name] = _added(first, [own[name] for own in owns], places)
            elif name in _TASTE:
                found[name] = _added(first, [own[name] for own, same in zip(owns, alike, strict=True) if same], None)
            elif name in _AVERAGED:
                found[name] = _averaged(first, owns, name)
        if _MASS in start:
            self._add_masses(found, start, owns, places)
        if _PAIRS[0] in start:
            self._add_pairs(found, start, owns, places)
        found["events"] = np.array([sum(int(own["events"][0]) for own in owns)], dtype=np.int64)
        return found

    def _places(self, state: State) -> np.ndarray:
        """Return where the rows of a state's items lie in a total; those of the last states are at hand."""
        key = state["item.id_ends"].tobytes(), state["item.ids"].tobytes()
        found = self._known.get(key)
        if found is None:
            ids = unpack_ids(state["item.id_ends"], state["item.ids"])
            self._blank.add_items(ids)
            found = self._known[key] = np.array([self._blank.item_row(item) for item in ids], dtype=np.int64)
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return found

    def _alike(self, one: State, other: State) -> bool:
        """Return whether two were told the same texts."""
        if not _described(one) or not _described(other):
            return not _described(one)  # who was told nothing has no taste to speak of
        return bool(np.array_equal(self._texts_of(one), self._texts_of(other)))

    def _texts_of(self, state: State) -> np.ndarray:
        rows = np.zeros((self._blank.n_items, state[_TEXTS].shape[1]), dtype=np.float32)
        rows[self._places(state)] = state[_TEXTS]
        return rows

    def _half_life(self) -> float:
        return float(getattr(self._blank, "half_life", 1.0))

    def _add_masses(self, found: Arrays, start: State, owns: Sequence[State], places: Sequence[np.ndarray]) -> None:
        since = max([0, *(int(own[_SINCE][0]) for own in owns)])
        mass = np.zeros_like(start[_MASS])
        for own, rows in zip(owns, places, strict=True):
            mass[rows] += own[_MASS] * _fade(int(own[_SINCE][0]), since, self._half_life())
        found[_MASS], found[_SINCE] = np.maximum(mass, 0.0), np.array([since], dtype=np.int64)

    def _add_pairs(self, found: Arrays, start: State, owns: Sequence[State], places: Sequence[np.ndarray]) -> None:
        table = _table_of(start)
        for own, rows in zip(owns, places, strict=True):
            add_pairs(*table, *_pairs_of(own, rows))
        np.maximum(table[1], np.float32(0.0), out=table[1])
        found |= _packed(table)
        found[_SCALE] = scales_of(found[_COUNTS], self._beta())

    def _beta(self) -> float:
        return float(getattr(self._blank, "beta", 0.0))

    # --- taking apart ---------------------------------------------------------------------------------------------

    def own(self, before: State, taken: State, now: State) -> Arrays:
        """Return a learner's own state.

        Parameters
        ----------
        before
            Its own state when it took up a total.
        taken
            That total: its items are the learner's first ones, in the same order.
        now
            Its whole state.
        """
        places = self._moved(before, now)
        own: Arrays = {}
        for name, value in now.items():
            if name in _ADDED:
                own[name] = _since(_spread(before[name], places, value), taken[name], value)
            elif name in _TASTE:
                own[name] = _since(before[name], taken[name], value)
            else:
                own[name] = value
        self._start_new_rows(own, places, len(taken["item.id_ends"]), now)
        if _MASS in now:
            then, since, half_life = int(taken[_SINCE][0]), int(now[_SINCE][0]), self._half_life()
            kept = _spread(before[_MASS], places, now[_MASS]) * _fade(int(before[_SINCE][0]), since, half_life)
            own[_MASS] = _since(kept, taken[_MASS] * _fade(then, since, half_life), now[_MASS])
        if _PAIRS[0] in now:
            self._own_pairs(own, before, taken, now, places)
        own["events"] = before["events"] + (now["events"] - taken["events"])
        return own

    def _start_new_rows(self, own: Arrays, places: np.ndarray, known: int, now: State) -> None:
        """Correct rows that only others had learned: what this learner added is on top of their start."""
        others = np.setdiff1d(np.arange(known), places)
        if len(others):
            start = self._blank.state_arrays()
            rows = self._places(now)[others]
            for name in _ADDED & own.keys():
                own[name][others] += start[name][rows]

    def _moved(self, before: State, now: State) -> np.ndarray:
        """Return the rows of a state's items in a later one."""
        after = self._places(now)
        rows = np.empty(self._blank.n_items, dtype=np.int64)
        rows[after] = np.arange(len(after))
        moved: np.ndarray = rows[self._places(before)]
        return moved

    def _own_pairs(self, own: Arrays, before: State, taken: State, now: State, places: np.ndarray) -> None:
        live, then = _table_of(now), self._table_taken(taken)
        same = live[0][: len(then[0])] == then[0]
        change = live[1].copy()
        change[: len(then[0])] -= np.where(same, then[1], np.float32(0.0))
        table = np.zeros_like(live[0]), np.zeros_like(live[1])
        add_pairs(*table, *_pairs_of(before, places))
        changed = np.flatnonzero(change)
        others = live[0].reshape(-1)[changed].astype(np.int64) - 1
        add_pairs(*table, changed // live[0].shape[1], others, change.reshape(-1)[changed])
        own |= _packed(table)
        own[_SCALE] = scales_of(own[_COUNTS], self._beta())

    def _table_taken(self, taken: State) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs of a total; all partitions of a worker take up the same."""
        if self._table is None or self._table[0] is not taken:
            self._table = taken, _table_of(taken)
        return self._table[1]

    def retold(self, own: State, before: State, after: State) -> Arrays:
        """Return an own state whose learner was told other texts: what it learned about texts is carried over.

        `before` and `after` are states from before and after that, of the same items in the same order.
        """
        found = dict(own)
        if _TEXTS in own and _described(before):
            start = self._blank.state_arrays()
            told = after[_TEXTS].any(axis=1)
            change = change_of(before[_TEXTS][told], after[_TEXTS][told])
            matrix, tilt = (own[name].astype(np.float64) - start[name] for name in (_MATRIX, _TILT))
            found[_MATRIX] = (start[_MATRIX] + change @ matrix @ change.T).astype(np.float32)
            found[_TILT] = (start[_TILT] + change @ tilt).astype(np.float32)
        for name in (_TEXTS, _DESCRIBED):
            if name in own:
                found[name] = after[name]
        return found

    # --- taking up ------------------------------------------------------------------------------------------------

    def together(self, total: State, users: Sequence[State], events: int = 0) -> Arrays:
        """Return a whole state: the items of a total, and the users of these states.

        Parameters
        ----------
        total
            Of states that know all items of `users`.
        users
            One state or more; a user that is in several is taken from the last.
        events
            The number of events is at least this: a learner's must never go back.
        """
        found = dict(total)
        told = next((state for state in users if _DESCRIBED in state and _described(state)), users[0])
        for name in _KEPT & told.keys():
            found[name] = self._texts_of(told) if name == _TEXTS else told[name]
        places = [self._places(state) for state in users]
        found |= _joined(users, places)
        found["events"] = np.maximum(total["events"], events)
        return found


def _described(state: State) -> bool:
    return _DESCRIBED in state and bool(state[_DESCRIBED][0])


def _fade(then: int, now: int, half_life: float) -> float:
    """Return what a mass as of one event is multiplied with to be as of another."""
    return float(0.5 ** ((now - then) / half_life))


def _added(start: np.ndarray, owns: Sequence[np.ndarray], places: Sequence[np.ndarray] | None) -> np.ndarray:
    """Return ``start + sum of (own - start)``, summed in 64 bits; `places` says where the rows of each own array go."""
    wide = np.int64 if start.dtype.kind == "i" else np.float64
    total = start.astype(wide)
    for number, own in enumerate(owns):
        rows = slice(None) if places is None else places[number]
        total[rows] += own.astype(wide) - start[rows]
    found: np.ndarray = total.astype(start.dtype)
    return found


def _averaged(start: np.ndarray, owns: Sequence[State], name: str) -> np.ndarray:
    events = [int(own["events"][0]) for own in owns]
    if not sum(events):
        return start
    found: np.ndarray = np.average([own[name] for own in owns], axis=0, weights=events)
    return found


def _spread(array: np.ndarray, places: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Return the rows at their places among those of another array, zeros elsewhere."""
    spread = np.zeros_like(like)
    spread[places] = array
    return spread


def _since(before: np.ndarray, taken: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Return ``before + (now - taken)``; rows that `taken` lacks are new."""
    found = before.copy()
    found[: len(taken)] += now[: len(taken)] - taken
    found[len(taken) :] = now[len(taken) :]
    return found


def _table_of(state: State) -> tuple[np.ndarray, np.ndarray]:
    return unpacked_places(*(state[name] for name in _PAIRS))


def _packed(table: tuple[np.ndarray, np.ndarray]) -> Arrays:
    return {f"item.neighbours.{name}": array for name, array in packed_places(*table).items()}


def _pairs_of(state: State, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return row, other and weight of each pair, the rows at their places in another order."""
    filled, keys, values = (state[name] for name in _PAIRS)
    rows = np.flatnonzero(np.unpackbits(filled)) // (8 * filled.shape[1])
    return places[rows], places[keys.astype(np.int64) - 1], values


def _joined(users: Sequence[State], places: Sequence[np.ndarray]) -> Arrays:
    """Return the users and logs of several states as those of one, its items at `places`."""
    ids = [unpack_ids(state["user.id_ends"], state["user.ids"]) for state in users]
    last = {user: number for number, names in enumerate(ids) for user in names}
    kept = [
        np.array([row for row, user in enumerate(names) if last[user] == number], dtype=np.int64)
        for number, names in enumerate(ids)
    ]
    sizes = [len(state["log.item"]) for state in users]
    moved = np.concatenate([[0], np.cumsum(sizes)])
    found: Arrays = {}
    for name in users[0]:
        if not name.startswith(("user.", "log.")) or name in ("user.id_ends", "user.ids"):
            continue
        arrays = []
        for number, state in enumerate(users):
            array = state[name] if name.startswith("log.") else state[name][kept[number]]
            if name in _HOLD_ROWS and array.size:
                array = places[number][array].astype(array.dtype)
            elif name in _HOLD_ENTRIES:
                array = np.where(array < 0, array, array + moved[number])
            arrays.append(array)
        found[name] = np.concatenate(arrays)
    names = [user for number, rows in enumerate(kept) for user in (ids[number][row] for row in rows)]
    found["user.id_ends"], found["user.ids"] = pack_ids(names)
    return found
