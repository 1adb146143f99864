"""How far an input was sent: a small file beside the producer, so that a run that died is gone on with.

The file says how many events of the input are acknowledged, a digest of their ids, and for each partition an offset
below which no later event lies. A resumed run reads the topic from there to its end: what it finds was sent after the
file was written, and is not sent again. So no event is left out, whatever died when.

A repeat is possible in one case: a request that the killed producer had handed to the system, and that the broker took
only after the resumed run had read the topic's end. Event ids come from the input, so such a repeat has the id of the
first, and a worker skips it.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import InvalidSetting, MalformedEvent, StreamError
from common.events import decode_event
from common.store import write_atomic
from stream.source import Log, TopicInfo, read_to_end

SCHEMA = 1


class Digest:
    """A running digest of event ids, in their order."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, event_id: str) -> None:
        """Take in the next id."""
        self._hash.update(event_id.encode("utf-8", "surrogatepass") + b"\n")

    def hex(self) -> str:
        """Return the digest so far."""
        return self._hash.hexdigest()


@dataclass(frozen=True, slots=True)
class Sent:
    """How far an input was sent.

    Parameters
    ----------
    acked
        So many events from its beginning are on the topic.
    digest
        Of their ids.
    offsets
        Partition to an offset; every record of a later event lies at or above it.
    """

    acked: int = 0
    digest: str = field(default_factory=lambda: Digest().hex())
    offsets: Mapping[int, int] = field(default_factory=dict)


class Journal:
    """The file of one input on its way to one topic.

    Parameters
    ----------
    path
        The file; made when first written.
    topic
        Where the input goes.
    """

    def __init__(self, path: Path, topic: TopicInfo) -> None:
        self._path, self._topic = path, topic

    def read(self) -> Sent | None:
        """Return how far it is, or None when nothing was begun.

        Raises
        ------
        InvalidSetting
            When the file is another's, or cannot be read.
        StreamError
            When the topic was made anew since.
        """
        try:
            found: Any = json.loads(self._path.read_bytes())
            name, identity = found["topic"], found["topic_id"]
            offsets = {int(part): int(offset) for part, offset in found["offsets"].items()}
            sent = Sent(int(found["acked"]), str(found["digest"]), offsets)
            known = found["schema"] == SCHEMA
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidSetting(f"{self._path} is no journal of sent events: {error!r}") from error
        if not known or name != self._topic.name:
            raise InvalidSetting(
                f"{self._path} is of topic {name!r}, schema {found['schema']}",
                expected=f"{self._topic.name!r}, schema {SCHEMA}",
                mend="name another --journal",
            )
        if identity != self._topic.identity:
            raise StreamError(
                f"topic {name!r} was made anew since {self._path} was written",
                consequence="nothing was sent",
                mend="delete the file to send everything to the new topic",
            )
        return sent

    def write(self, sent: Sent) -> None:
        """Replace the file, durably."""
        content = {
            "schema": SCHEMA,
            "topic": self._topic.name,
            "topic_id": self._topic.identity,
            "acked": sent.acked,
            "digest": sent.digest,
            "offsets": {str(part): offset for part, offset in sorted(sent.offsets.items())},
        }
        write_atomic(self._path, json.dumps(content).encode() + b"\n")

    def begin(self, log: Log) -> Sent:
        """Note where the topic ends before anything is sent."""
        source = log.source(self._topic.name, "anabranch-produce")
        try:
            bounds = source.bounds(self._topic.partitions)
        finally:
            source.close()
        sent = Sent(offsets={part: end for part, (_, end) in bounds.items()})
        self.write(sent)
        return sent

    def later_ids(self, log: Log, sent: Sent) -> Counter[str]:
        """Return the ids of the records that came after the file was written, read until the topic is quiet."""
        source = log.source(self._topic.name, "anabranch-produce")
        try:
            ids = (_id_of(record.value) for record in read_to_end(source, self._topic.partitions, sent.offsets))
            return Counter(event_id for event_id in ids if event_id is not None)
        finally:
            source.close()


def _id_of(value: bytes | None) -> str | None:
    try:
        return decode_event(value or b"").event_id
    except MalformedEvent:  # somebody else's record
        return None
