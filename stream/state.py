"""What the stream worker knows, and what one record does to it. No broker here: bytes in, outcome out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from common.errors import AnabranchError, CheckpointMismatch, InvalidSetting, MalformedEvent
from common.events import Interaction, decode_event
from common.settings import feedback_of, was_tried
from stream.learner.base import ArrayRanker
from stream.learner.blend import Blend
from stream.learner.mf import MF
from stream.learner.pointwise import PointwiseMF
from stream.learner.popularity import Popularity
from stream.progressive import Progressive, Protocol
from stream.recent_ids import RecentIds
from stream.source import NO_EPOCH

OURS = "ours"
POPULARITY = "popularity"

Served = MF | Blend | PointwiseMF
"""Learners that give a snapshot for serving."""
Decoder = Callable[[bytes], Interaction]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one record.

    Parameters
    ----------
    kind
        "learned", "neutral" (an event that says nothing about taste), "duplicate" (its event_id came before),
        "stale" (its offset was applied before) or "dead".
    error, reason
        Of a dead one: the error's class and one line.
    ts
        The event's own time in milliseconds, where it could be read.
    """

    kind: Literal["learned", "neutral", "duplicate", "stale", "dead"]
    error: str = ""
    reason: str = ""
    ts: int | None = None


@dataclass(frozen=True, slots=True)
class ItemTexts:
    """Text vectors of items: float [n, h], one row an id."""

    ids: tuple[str, ...]
    vectors: np.ndarray


class StreamState:
    """Learner, controls, counters, offsets and recent ids: all that a checkpoint holds.

    Parameters
    ----------
    learner
        The one whose factors are served.
    every
        Test every so many liked events; 0 tests none.
    dedup_window
        How many event ids are remembered.
    decode
        Bytes to event; whatever it raises makes a dead letter.
    """

    def __init__(
        self, learner: Served, *, every: int = 1, dedup_window: int = 100_000, decode: Decoder = decode_event
    ) -> None:
        if every < 0 or dedup_window < 0:
            raise InvalidSetting(f"every {every}, dedup_window {dedup_window}", expected="0 or more")
        self.learner = learner
        contenders: dict[str, ArrayRanker] = {OURS: learner, POPULARITY: Popularity()}
        warm = 2**62 if every == 0 else 0  # never warm enough: nothing is tested
        protocol = Protocol(warm_events=warm, every=max(every, 1))
        repeats = isinstance(learner, Blend) and learner.repeats
        self.progressive = Progressive(contenders, protocol.with_repeats() if repeats else protocol)
        self._recent = RecentIds(dedup_window)
        self._decode = decode
        self.events = self.learned = self.duplicates_skipped = self.dead_letters = 0
        self.offsets: dict[str, dict[int, int]] = {}
        self.epochs: dict[str, dict[int, int]] = {}
        self.topic_ids: dict[str, str] = {}

    def add_items(self, ids: tuple[str, ...]) -> None:
        """Make items candidates of every contender."""
        for learner in self.progressive.contenders.values():
            learner.add_items(ids)

    def describe(self, texts: ItemTexts) -> bool:
        """Tell the learner what the items' texts are, if it listens; return whether that changed anything."""
        if not isinstance(self.learner, Blend):
            return False
        before = self.learner.described_by
        self.learner.describe(texts.ids, texts.vectors)
        return self.learner.described_by != before

    def apply(self, topic: str, partition: int, offset: int, value: bytes | None, epoch: int = NO_EPOCH) -> Outcome:
        """Apply one record, and move the partition's offset past it; `epoch` is the leader's that wrote it.

        A record below the stored offset was applied before and changes nothing ("stale").
        """
        parts = self.offsets.setdefault(topic, {})
        if offset < parts.get(partition, 0):
            return Outcome("stale")
        outcome = self._judge(value)
        parts[partition] = offset + 1
        self.epochs.setdefault(topic, {})[partition] = epoch
        self.events += 1
        self.learned += outcome.kind == "learned"
        self.duplicates_skipped += outcome.kind == "duplicate"
        self.dead_letters += outcome.kind == "dead"
        return outcome

    def _judge(self, value: bytes | None) -> Outcome:
        try:
            if value is None:
                raise MalformedEvent("a record without a value", expected="an event")
            event = self._decode(value)
        except AnabranchError as error:
            return Outcome("dead", type(error).__name__, str(error))
        except Exception as error:  # one record must never stop the stream, whatever a decoder does
            return Outcome("dead", type(error).__name__, " ".join(f"the decoder failed: {error}".split()))
        if event.event_id in self._recent:
            return Outcome("duplicate", ts=event.ts)
        feedback = feedback_of(event)
        try:
            if feedback.sign > 0:
                self.progressive.step(event.user_id, event.item_id, feedback.weight, event.ts)
            elif feedback.sign < 0:
                self.progressive.dislike(event.user_id, event.item_id, feedback.weight, event.ts)
            if feedback.sign <= 0 and was_tried(event) and isinstance(self.learner, Blend):
                self.learner.try_one(event.user_id, event.item_id)
        except MalformedEvent as error:
            return Outcome("dead", type(error).__name__, str(error), event.ts)
        # only now: an event that could not be learned may come again, mended
        self._recent.add(event.event_id)
        return Outcome("learned" if feedback.sign else "neutral", ts=event.ts)

    def read_on(self, topic: str, partition: int, offset: int) -> None:
        """Go on from another offset than the one after the last record."""
        self.offsets.setdefault(topic, {})[partition] = offset
        self.epochs.get(topic, {}).pop(partition, None)

    def forget_topic(self, topic: str, identity: str) -> None:
        """Take the topic for a new one, to be read from its beginning; what was learned stays."""
        self.offsets.pop(topic, None)
        self.epochs.pop(topic, None)
        self.topic_ids[topic] = identity

    @property
    def json_offsets(self) -> dict[str, dict[str, int]]:
        """Topic to partition, as text, to the next offset to read."""
        return _as_json(self.offsets)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays of a checkpoint; the learners' are their own, which the next record changes."""
        state = self.arrays_beside_learners()
        for contender, learner in self.progressive.contenders.items():
            state |= {f"{contender}/{name}": array for name, array in learner.state_views().items()}
        return state

    def arrays_beside_learners(self) -> dict[str, np.ndarray]:
        """Return the arrays of a checkpoint that are no learner's."""
        state = {f"progressive/{name}": array for name, array in self.progressive.state_arrays().items()}
        state["recent_ids"] = self._recent.as_array()
        return state

    def details(self) -> dict[str, Any]:
        """Return the JSON values of a checkpoint."""
        return {
            "events": self.events,
            "learned": self.learned,
            "duplicates_skipped": self.duplicates_skipped,
            "dead_letters": self.dead_letters,
            "drift_alarms": self.progressive.drift_alarms,
            "offsets": self.json_offsets,
            "epochs": _as_json(self.epochs),
            "topic_ids": dict(sorted(self.topic_ids.items())),
        }

    def restore(self, arrays: Mapping[str, np.ndarray], details: Mapping[str, Any]) -> list[str]:
        """Become the state of a checkpoint; return what could not be taken over, one line each.

        Raises
        ------
        CheckpointMismatch
            When it was made with other settings, naming what differs.
        """
        if "recent_ids" not in arrays:
            raise CheckpointMismatch("the checkpoint lacks 'recent_ids'", mend="use a new store")
        for contender, learner in self.progressive.contenders.items():
            learner.load_state(_under(f"{contender}/", arrays))
        same_river = self.progressive.load_state(_under("progressive/", arrays))
        self._recent.load(arrays["recent_ids"])
        self.events, self.learned = int(details["events"]), int(details["learned"])
        self.duplicates_skipped, self.dead_letters = int(details["duplicates_skipped"]), int(details["dead_letters"])
        self.offsets = _by_partition(details["offsets"])
        self.epochs = _by_partition(details.get("epochs", {}))  # older checkpoints have none
        self.topic_ids = {str(topic): str(identity) for topic, identity in details["topic_ids"].items()}
        return [] if same_river else ["another version of river wrote the checkpoint: the drift detector starts anew"]


def _as_json(places: Mapping[str, Mapping[int, int]]) -> dict[str, dict[str, int]]:
    return {
        topic: {str(part): number for part, number in sorted(parts.items())} for topic, parts in sorted(places.items())
    }


def _by_partition(places: Mapping[str, Mapping[str, int]]) -> dict[str, dict[int, int]]:
    return {str(topic): {int(part): int(number) for part, number in parts.items()} for topic, parts in places.items()}


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
