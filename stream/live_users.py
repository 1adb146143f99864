"""What users did since the snapshot that is served, in this process's memory: a few events a user.

`stream.click_table` keeps the same where several processes ask.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence

from common.recent import Recent
from stream.recent_notes import Note, recent_of
from stream.source import Log
from stream.tail import Offsets, Tail


class NotesHere:
    """Notes in this process; see `stream.recent_notes.Notes`.

    Parameters
    ----------
    users
        So many users are remembered; those with the oldest last event are forgotten first.
    events
        So many events of each are remembered, the newest.
    """

    def __init__(self, users: int = 100_000, events: int = 200) -> None:
        self._most_users, self._most_events = users, events
        self._lock = threading.Lock()
        self._users: OrderedDict[str, deque[Note]] = OrderedDict()

    def add(self, user_id: str, note: Note) -> None:
        """Keep the note."""
        with self._lock:
            self._users.setdefault(user_id, deque(maxlen=self._most_events)).append(note)
            self._users.move_to_end(user_id)
            if len(self._users) > self._most_users:
                self._users.popitem(last=False)

    def of(self, user_id: str) -> Sequence[Note]:
        """Return the user's notes."""
        with self._lock:
            return tuple(self._users.get(user_id, ()))

    def forget(self, read: Mapping[str, int]) -> None:
        """Forget what is below."""
        with self._lock:
            for user in list(self._users):
                notes = self._users[user]
                while notes and notes[0].offset < read.get(notes[0].partition, 0):
                    notes.popleft()
                if not notes:
                    del self._users[user]

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._users.clear()

    def tell(self, lag: int | None) -> None:
        """Have no use for it."""

    def __len__(self) -> int:
        """How many are held."""
        with self._lock:
            return sum(map(len, self._users.values()))


class LiveUsers(Tail):
    """Follows the topic and answers what a user did of late; see `common.recent.RecentEvents`.

    Parameters
    ----------
    log, topic, served, ids, monotonic
        As for `Tail`.
    users, events
        As for `NotesHere`.
    """

    def __init__(
        self,
        log: Log,
        topic: str,
        served: Callable[[], Offsets],
        *,
        users: int = 100_000,
        events: int = 200,
        ids: int = 100_000,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._here = NotesHere(users, events)
        super().__init__(log, topic, served, self._here, ids=ids, monotonic=monotonic)

    def since(self, user_id: str, offsets: Offsets) -> Recent:
        """Return the user's events at or above the offsets (topic to partition, as text, to the next offset)."""
        return recent_of(self._here.of(user_id), offsets.get(self._topic, {}))

    @property
    def remembered(self) -> int:
        """How many events are held."""
        return len(self._here)
