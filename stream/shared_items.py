"""What all partitions of a topic learned about items, from their newest checkpoints; and all of it as one state.

A partition's checkpoint holds its users and its own part of what is known about items (`stream.learner.sharing`). Each
worker reads the newest checkpoints of the partitions of others, adds up all parts, and goes on with the sum. As a part
and the offsets that it was learned from are one artifact, nothing is counted twice, whoever died in between.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from common.errors import ArtifactCorrupt
from stream.checkpoint import Checkpoint
from stream.learner.packing import pack_ids, unpack_ids
from stream.learner.parts import Arrays
from stream.learner.sharing import Sharing
from stream.partitions import Mark, PartitionStore
from stream.state import StreamState

Parts = Mapping[str, Arrays]
"""Contender to the own state of its learner."""


def under(prefix: str, arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Return the arrays whose names begin with the prefix, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


class SharedItems:
    """The sum of what the partitions learned about items.

    Parameters
    ----------
    make
        Gives a state that learned nothing, with the settings of all.

    Raises
    ------
    InvalidSetting
        When what such a learner knows about items cannot be added up.
    """

    def __init__(self, make: Callable[[], StreamState]) -> None:
        self.sharing = {name: Sharing(learner) for name, learner in make().progressive.contenders.items()}
        self.total: dict[str, Arrays] = {}
        self.events: dict[int, int] = {}
        self._parts: dict[int, tuple[Mark | None, dict[str, Arrays]]] = {}

    def put(self, partition: int, mark: Mark | None, parts: Parts, events: int) -> None:
        """Take the own states of a partition in place of its older ones; what they say of users is not kept."""
        items = {
            name: {key: array for key, array in part.items() if not key.startswith(("user.", "log."))}
            for name, part in parts.items()
        }
        self._parts[partition] = mark, items
        self.events[partition] = events

    def refresh(self, store: PartitionStore, owned: Collection[int], notice: Callable[[str], None]) -> bool:
        """Read what partitions of others have written since; return whether there was anything."""
        changed = False
        for partition in store.numbers():
            if partition in owned:
                continue
            known = self._parts.get(partition)
            if store.mark(partition) in (None, known and known[0]):
                continue
            try:
                found = store.newest(partition, notice)
            except ArtifactCorrupt as error:  # its owner is told when it starts; the others go on with what they have
                notice(str(error))
                continue
            if found is not None and (known is None or found[0] != known[0]):
                mark, checkpoint = found
                parts = {name: under(f"{name}/", checkpoint.arrays) for name in self.sharing}
                self.put(partition, mark, parts, int(checkpoint.details["events"]))
                changed = True
        return changed

    def add_up(self, texts: Parts | None = None) -> None:
        """Make `total` the sum of the newest parts; `texts` are states that were told the newest texts."""
        parts = [self._parts[partition][1] for partition in sorted(self._parts)]
        self.total = {
            name: sharing.total([part[name] for part in parts], None if texts is None else texts[name])
            for name, sharing in self.sharing.items()
        }


def whole_state(state: StreamState, sharings: Mapping[str, Sharing], checkpoints: Sequence[Checkpoint]) -> StreamState:
    """Return the state of all partitions together, as if one worker had learned them.

    Parameters
    ----------
    state
        One that learned nothing, with the settings of all; it is changed and returned.
    sharings
        Contender to what adds up states like its learner's.
    checkpoints
        The newest of each partition, one or more.
    """
    arrays: Arrays = {}
    for name, sharing in sharings.items():
        states = [under(f"{name}/", found.arrays) for found in checkpoints]
        whole = sharing.together(sharing.total(states), states)
        arrays |= {f"{name}/{key}": array for key, array in whole.items()}
    arrays |= _tested([found.arrays for found in checkpoints], arrays, list(state.progressive.contenders))
    arrays["recent_ids"] = np.concatenate([found.arrays["recent_ids"] for found in checkpoints])
    state.restore(arrays, summed([found.details for found in checkpoints]))
    return state


def summed(details: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the details of checkpoints of different partitions as those of one."""
    counted = ("events", "learned", "duplicates_skipped", "dead_letters", "drift_alarms")
    found: dict[str, Any] = {name: sum(int(each[name]) for each in details) for name in counted}
    offsets: dict[str, dict[str, int]] = {}
    identities: dict[str, str] = {}
    for each in details:
        identities |= each["topic_ids"]
        for topic, parts in each["offsets"].items():
            offsets.setdefault(topic, {}).update(parts)
    return {**found, "offsets": offsets, "topic_ids": identities}


def _tested(parts: Sequence[Mapping[str, np.ndarray]], whole: Mapping[str, np.ndarray], names: Sequence[str]) -> Arrays:
    """Return what the tests of all partitions came to (`stream.progressive.Progressive.state_arrays`)."""
    tests = [under("progressive/", part) for part in parts]
    users = [unpack_ids(test["user_id_ends"], test["user_ids"]) for test in tests]
    order = {user: row for row, user in enumerate(dict.fromkeys(user for ids in users for user in ids))}
    places = [np.array([order[user] for user in ids], dtype=np.int64) for ids in users]
    found: Arrays = {name: tests[0][name] for name in ("protocol", "river", "adwin")}
    found["counters"] = np.sum([test["counters"] for test in tests], axis=0)
    found["user_id_ends"], found["user_ids"] = pack_ids(order)
    found["tested"] = _by_user([test["tested"] for test in tests], places, len(order))
    for name in names:
        rows = _rows_of(under(f"{name}/", whole))
        found[f"{name}.sums"] = np.sum([test[f"{name}.sums"] for test in tests], axis=0)
        found[f"{name}.hits"] = _by_user([test[f"{name}.hits"] for test in tests], places, len(order))
        covered = np.zeros(len(rows), dtype=bool)
        for part, test in zip(parts, tests, strict=True):
            known = list(_rows_of(under(f"{name}/", part)))
            listed = np.flatnonzero(test[f"{name}.covered"])
            covered[[rows[known[row]] for row in listed]] = True
        found[f"{name}.covered"] = covered
    return {f"progressive/{name}": array for name, array in found.items()}


def _by_user(arrays: Sequence[np.ndarray], places: Sequence[np.ndarray], users: int) -> np.ndarray:
    total = np.zeros(users, dtype=np.int64)
    for array, rows in zip(arrays, places, strict=True):
        np.add.at(total, rows, array)
    return total


def _rows_of(state: Mapping[str, np.ndarray]) -> dict[str, int]:
    return {item: row for row, item in enumerate(unpack_ids(state["item.id_ends"], state["item.ids"]))}
