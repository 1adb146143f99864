"""What an array-backed ranker knows of users and items: ids, growing arrays, who has seen what, state in and out."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from common.errors import CheckpointMismatch
from common.ids import arrays_sha256
from stream.learner.admission import checked_id, learnable_id
from stream.learner.kernels import SeenLog, UserRows, seen_rows
from stream.learner.lists import Lists, all_histories, all_seen, lay_out
from stream.learner.packing import pack_ids, unpack_ids
from stream.learner.params import check_params
from stream.learner.retention import Retention

_FIRST_CAPACITY = 64


def grown(array: np.ndarray, rows: int) -> np.ndarray:
    """Return the array with room for `rows`, at least doubled when it must grow; new rows are zero."""
    if rows <= len(array):
        return array
    larger = np.zeros((max(rows, 2 * len(array), _FIRST_CAPACITY), *array.shape[1:]), dtype=array.dtype)
    larger[: len(array)] = array
    return larger


class UserItemRows:
    """A row for every item and for every user who liked something, in arrays that grow.

    Each item has a place in the item arrays, each user one in the user arrays, with the newest likes in a ring; a log
    of the likes, each entry with the user's one before it, says all that a user ever liked. Subclasses add arrays of
    their own to the same families, and call `_empty_rows` first.
    """

    def _empty_rows(self, window: int, retention: Retention) -> None:
        self.window = window
        self._retention = retention
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
        self._log_size = self._laid_out = 0
        self._events = 0
        self._rewire()

    def _params_json(self) -> bytes:
        """Return kind and parameters of the ranker, which a checkpoint of another one does not have."""
        raise NotImplementedError  # each kind of ranker has its own

    def _start_item(self, row: int, item: str) -> None:
        """Fill in a new item's row."""

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

    def _rows_of_all(self, ids: Sequence[str]) -> np.ndarray:
        """Return the rows of items, int64; unknown ones are given one."""
        rows = list(map(self._item_rows.get, ids))
        return np.array([self._item(item) for item in ids] if None in rows else rows, dtype=np.int64)

    def _user(self, user: str) -> int:
        row = self._user_rows.get(user)
        if row is None:
            row = self._user_rows[user] = len(self._user_rows)
            self._make_room_for_user(row)
            self._users.newest[row] = -1
        return row

    def _make_room_for_user(self, row: int) -> None:
        if row >= len(self._users.newest):
            self._user_arrays = {name: grown(array, row + 1) for name, array in self._user_arrays.items()}
            self._rewire()

    def _make_room(self, entries: int) -> None:
        if self._log_size + entries > len(self._log_arrays["item"]):
            self._lay_out()
            needed = self._log_size + entries
            self._log_arrays = {name: grown(array, needed) for name, array in self._log_arrays.items()}
            self._rewire()

    def _lay_out(self) -> None:
        """Bring each user's entries of the log together, where some came since the last time."""
        if self._laid_out == self._log_size:
            return
        cut = {name: array[: self._log_size] for name, array in self._log_arrays.items()}
        previous = cut.pop("previous")
        lay_out(self._users, list(cut.values()), previous, self.n_users)
        self._laid_out = self._log_size

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

    # --- state ------------------------------------------------------------------------------------------------------

    def state_arrays(self) -> dict[str, np.ndarray]:
        """Return the whole state as arrays, cut to what is used; `load_state` takes it back bit for bit."""
        return {name: array.copy() for name, array in self.state_views().items()}

    def state_views(self) -> dict[str, np.ndarray]:
        """Return what `state_arrays` copies: the learner's own arrays, for who is done with them before it learns.

        The log is in the order of the users, whenever it was brought into that before.
        """
        self._lay_out()
        cut = {name: array[: self.n_items] for name, array in self._item_arrays.items()}
        state = {f"item.{name}": array for name, array in self._packed(cut).items()}
        state |= {f"user.{name}": array[: self.n_users] for name, array in self._user_arrays.items()}
        state |= {f"log.{name}": array[: self._log_size] for name, array in self._log_arrays.items()}
        state |= {f"fixed.{name}": array for name, array in self._fixed_arrays.items()}
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
        for name, like in self.state_views().items():
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
        self._log_size, self._laid_out = len(self._log_arrays["item"]), 0
        self._events = int(arrays["events"][0])
        self._rewire()

    def state_sha256(self) -> str:
        """Return the SHA-256 of the whole state."""
        return arrays_sha256(self.state_views().items())
