"""Items and interactions as JSON lines, the form in which nodes and stores keep them."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import msgspec

from common.errors import ArtifactCorrupt, MalformedEvent
from common.events import Interaction, decode_event, encode_event
from common.items import Catalogue, Item
from common.store import write_atomic


def write_interactions(path: Path, interactions: Iterable[Interaction]) -> None:
    """Write interactions, one JSON record a line, whole or not at all."""
    write_atomic(path, b"".join(encode_event(event) + b"\n" for event in interactions))


def read_interactions(path: Path) -> Iterator[Interaction]:
    """Read interactions back, in the order of the file.

    Raises
    ------
    MalformedEvent
        At the first bad line, naming file and line.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield decode_event(line)
            except MalformedEvent as error:
                raise MalformedEvent(f"{path} line {number}: {error}") from error


def write_catalogue(path: Path, catalogue: Iterable[Item]) -> None:
    """Write items, one JSON record a line, whole or not at all."""
    write_atomic(path, b"".join(msgspec.json.encode(asdict(item)) + b"\n" for item in catalogue))


def read_catalogue(path: Path) -> Catalogue:
    """Read a catalogue back.

    Raises
    ------
    ArtifactCorrupt
        At the first bad line, naming file and line.
    """
    items = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                items.append(msgspec.json.decode(line, type=Item))
            except (msgspec.DecodeError, msgspec.ValidationError) as error:
                raise ArtifactCorrupt(f"{path} line {number} is no item: {error}") from error
    return Catalogue(items)
