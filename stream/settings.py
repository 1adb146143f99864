"""What a stream worker is told to do, and what it reports."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.errors import InvalidSetting, UnknownName
from stream.connect import Client
from stream.security import PLAIN, Security
from stream.source import SESSION_S
from stream.topics import check_bootstrap, check_member, check_topic

SESSION_AT_LEAST_S = 3.0
"""Three heartbeats: a late one is no death."""
OnNewTopic = Literal["fail", "continue"]
OnLostOffset = Literal["fail", "earliest", "latest"]


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a stream worker does.

    Parameters
    ----------
    servers, topic
        Where the records are.
    store
        Folder that holds the checkpoints and snapshots.
    checkpoint_events, checkpoint_seconds
        A checkpoint is written after so many records or seconds, whichever comes first, and at the end. A worker that
        learns alone waits longer where storing takes it more than a tenth of the time: `stream.consumer.pause_after`.
    until_events
        Stop when so many records were applied in all, those of earlier runs into this store included.
    idle_timeout_s
        Stop after so long without a record.
    on_new_topic
        When the topic is not the one of the checkpoint (deleted and made again, or another broker): "fail", or
        "continue": keep what was learned and read the new topic from its beginning.
    on_lost_offset
        When the broker no longer has the next offset: "fail", or go on from the "earliest" or "latest" it has.
    dedup_window
        How many event ids are remembered.
    evaluate_every
        Test every so many liked events before learning; 0 tests none.
    keep
        How many checkpoints and snapshots stay.
    group
        Consumer group whose offsets dashboards see.
    member
        Of a worker of several: its name in the group. A worker that ends and starts again under its name within the
        session has its partitions back, and the others keep theirs; None is a new member at each start.
    session_seconds
        Of a worker of several: one that is not heard of for so long is taken for dead, and others get its partitions.
    topic_wait_s
        How long to wait for the topic to appear.
    broker_wait_s
        How long a broker may be away while the worker runs, before that is an error; what was learned is stored first.
    bad_share, bad_window
        Stop when more than this share of a window of so many records cannot be read; a share of 1 never stops. See
        `stream.breaker`.
    security
        What the broker asks for.
    client
        The library that speaks to it: "kafka-python", or "librdkafka" where the extra `fast` is installed.
    """

    servers: str
    topic: str
    store: Path
    checkpoint_events: int = 5000
    checkpoint_seconds: float = 5.0
    until_events: int | None = None
    idle_timeout_s: float | None = None
    on_new_topic: OnNewTopic = "fail"
    on_lost_offset: OnLostOffset = "fail"
    dedup_window: int = 100_000
    evaluate_every: int = 1
    keep: int = 3
    group: str = "anabranch"
    member: str | None = None
    session_seconds: float = SESSION_S
    topic_wait_s: float = 10.0
    broker_wait_s: float = 120.0
    bad_share: float = 0.5
    bad_window: int = 200
    security: Security = PLAIN
    client: Client = "kafka-python"

    def __post_init__(self) -> None:
        check_bootstrap(self.servers)
        check_topic(self.topic)
        if self.member is not None:
            check_member(self.member)
        if not self.session_seconds >= SESSION_AT_LEAST_S:
            raise InvalidSetting(f"session_seconds {self.session_seconds}", expected=f"{SESSION_AT_LEAST_S:g} or more")
        if self.on_new_topic not in ("fail", "continue"):
            raise UnknownName("policy for a new topic", self.on_new_topic, ["fail", "continue"])
        if self.on_lost_offset not in ("fail", "earliest", "latest"):
            raise UnknownName("policy for a lost offset", self.on_lost_offset, ["fail", "earliest", "latest"])
        if self.checkpoint_events < 1 or not self.checkpoint_seconds > 0 or self.keep < 2:
            raise InvalidSetting(
                f"checkpoint_events {self.checkpoint_events}, checkpoint_seconds {self.checkpoint_seconds},"
                f" keep {self.keep}",
                expected="1 or more, above 0, 2 or more",
            )


@dataclass(frozen=True, slots=True)
class LearnReport:
    """What the state holds at the end of a run; all counts include earlier runs into the same store.

    Parameters
    ----------
    events
        Records applied: learned, neutral, duplicates and dead ones.
    learned, duplicates_skipped, dead_letters, drift_alarms
        What became of them.
    offsets
        Topic to partition, as text, to the next offset to read.
    state_sha256
        Of the learner.
    metrics
        Contender to its row.
    resumed_from
        Records applied before this run.
    seconds
        Wall time of this run.
    """

    events: int
    learned: int
    duplicates_skipped: int
    dead_letters: int
    drift_alarms: int
    offsets: dict[str, dict[str, int]]
    state_sha256: str
    metrics: dict[str, dict[str, Any]]
    resumed_from: int
    seconds: float
