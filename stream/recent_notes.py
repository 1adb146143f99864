"""What is noted of events since a snapshot, and what that says of a user."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from common.recent import NOTHING, Recent


class Note(NamedTuple):
    """One event of a user; what is neither a sign nor a trial is not noted."""

    partition: str
    offset: int
    item_id: str
    sign: int
    tried: bool


class Notes(Protocol):
    """Keeps notes of many users in bounded memory; one thread tells it all."""

    def add(self, user_id: str, note: Note) -> None:
        """Keep the note, the user's newest."""
        ...

    def forget(self, read: Mapping[str, int]) -> None:
        """Hear that nobody asks for offsets below these any more (partition, as text, to the next offset)."""
        ...

    def clear(self) -> None:
        """Forget everything."""
        ...

    def tell(self, lag: int | None) -> None:
        """Hear how many records are not read yet; None while no broker answers."""
        ...


def recent_of(notes: Iterable[Note], read: Mapping[str, int]) -> Recent:
    """Return what notes, oldest first, say beyond the offsets (partition, as text, to the next offset)."""
    liked: list[str] = []
    tried: list[str] = []
    rejected: dict[str, None] = {}
    for note in notes:
        if note.offset < read.get(note.partition, 0):
            continue
        if note.sign > 0 or note.tried:
            tried.append(note.item_id)
        if note.sign > 0:
            liked.append(note.item_id)
            rejected.pop(note.item_id, None)
        elif note.sign < 0:
            rejected[note.item_id] = None
    return Recent(tuple(liked), tuple(tried), tuple(rejected)) if tried or rejected else NOTHING
