"""What the broker says about topics: whether it answers, which topics there are, which topic a name stands for now."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from kafka import KafkaAdminClient
from kafka.admin import NewTopic
from kafka.errors import (
    AuthorizationError,
    KafkaError,
    KafkaTimeoutError,
    SaslAuthenticationFailedError,
    TopicAlreadyExistsError,
)

from common.errors import BrokerUnavailable, InvalidSetting, StreamError, UnknownName
from stream.security import PLAIN, Security
from stream.source import TopicInfo

ANSWER_WITHIN_MS = 10_000
"""How long a broker may take to answer at all; kafka-python alone would wait half a minute."""

LOOK_UP_MS = 2500
"""How long a look at the topic may take while working: a worker that is told to stop must not hang in it."""

DEAD_SUFFIX = ".dead"
REPLAYED_SUFFIX = ".replayed"
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,240}")
_ADDRESS = re.compile(r"[^\s,:/]+:[0-9]{1,5}|\[[0-9A-Fa-f:]+\]:[0-9]{1,5}")


def dead_topic(topic: str) -> str:
    """Return the name of the topic that takes what could not be read from `topic`."""
    return f"{topic}{DEAD_SUFFIX}"


def replayed_topic(topic: str) -> str:
    """Return the name of the topic that notes which dead letters of `topic` were sent again."""
    return f"{topic}{REPLAYED_SUFFIX}"


def check_topic(name: str) -> str:
    """Return the name if Kafka and its dead-letter topic can bear it.

    Raises
    ------
    InvalidSetting
        When they cannot.
    """
    if not _TOPIC.fullmatch(name) or name in (".", ".."):
        raise InvalidSetting(f"topic {name!r}", expected="1 to 240 letters, digits, '.', '_' or '-'")
    return name


def check_member(name: str) -> str:
    """Return the name if Kafka takes it for that of a member of a group.

    Raises
    ------
    InvalidSetting
        When it does not.
    """
    if not _TOPIC.fullmatch(name) or name in (".", ".."):
        raise InvalidSetting(f"member {name!r}", expected="1 to 240 letters, digits, '.', '_' or '-'")
    return name


def check_bootstrap(servers: str) -> str:
    """Return the servers if they are HOST:PORT, several of them apart by commas.

    Raises
    ------
    InvalidSetting
        When they are not.
    """
    for address in servers.split(","):
        if not _ADDRESS.fullmatch(address) or not 0 < int(address.rpartition(":")[2]) < 65536:
            raise InvalidSetting(f"bootstrap server {address!r}", expected="HOST:PORT[,HOST:PORT]")
    return servers


@contextmanager
def broker_answers(servers: str) -> Iterator[None]:
    """Turn kafka-python's failure to reach a broker into one line.

    Raises
    ------
    BrokerUnavailable
        When none of `servers` answers within `ANSWER_WITHIN_MS`.
    StreamError
        When the broker refuses what was asked.
    """
    try:
        yield
    except KafkaTimeoutError as error:
        raise BrokerUnavailable(
            f"no Kafka broker answers at {servers} ({error})",
            mend="start one (`anabranch broker`, or `docker compose up kafka`), or name a running one with"
            " --bootstrap-servers",
        ) from error
    except (AuthorizationError, SaslAuthenticationFailedError) as error:
        raise StreamError(
            f"the broker at {servers} refused who we are: {error}",
            mend="look at protocol, mechanism, user and password of the --security file",
        ) from error
    except KafkaError as error:
        raise StreamError(f"the broker at {servers} refused: {error}") from error


@contextmanager
def admin_client(servers: str, security: Security = PLAIN, within_ms: int | None = None) -> Iterator[KafkaAdminClient]:
    """Give an admin client; errors as for `broker_answers`."""
    wait = ANSWER_WITHIN_MS if within_ms is None else min(within_ms, ANSWER_WITHIN_MS)
    with broker_answers(check_bootstrap(servers)):
        client = KafkaAdminClient(
            bootstrap_servers=servers,
            bootstrap_timeout_ms=wait,
            request_timeout_ms=wait,
            client_id="anabranch-admin",
            **security.kafka_options(),
        )
        try:
            yield client
        finally:
            client.close()


def describe(client: KafkaAdminClient, topic: str) -> TopicInfo | None:
    """Return what the broker says about the topic, or None when there is none."""
    for found in client.describe_topics([topic]):
        partitions = tuple(sorted(int(part["partition_index"]) for part in found["partitions"]))
        if found["name"] == topic and found["error_code"] == 0 and partitions:
            identity = str(found.get("topic_id") or "")
            return TopicInfo(topic, "" if set(identity) <= {"0", "-"} else identity, partitions)
    return None


def ensure_topic(servers: str, topic: str, partitions: int = 1, security: Security = PLAIN) -> TopicInfo:
    """Return the topic, created with that many partitions if there is none.

    Raises
    ------
    InvalidSetting
        When the name or the number cannot be.
    StreamError
        When the broker refuses, or has not shown the topic in time.
    """
    check_topic(topic)
    if not 1 <= partitions <= 10_000:
        raise InvalidSetting(f"{partitions} partitions", expected="1 to 10000")
    with admin_client(servers, security) as client:
        found = describe(client, topic)
        if found is None:
            try:
                client.create_topics([NewTopic(topic, num_partitions=partitions, replication_factor=-1)])
            except TopicAlreadyExistsError:
                pass  # somebody else was quicker; theirs will do
            found = _appearing(client, topic, ANSWER_WITHIN_MS / 1000)
    if found is None:
        raise StreamError(f"topic {topic!r} was created at {servers} and does not appear", mend="look at the broker")
    return found


def await_topic(servers: str, topic: str, wait_s: float, security: Security = PLAIN) -> TopicInfo:
    """Return the topic, waiting for somebody to create it.

    Raises
    ------
    UnknownName
        When it is not there after `wait_s` seconds, naming those that are.
    """
    check_topic(topic)
    with admin_client(servers, security) as client:
        found = _appearing(client, topic, wait_s)
        if found is None:
            known = [str(name) for name in client.list_topics() if not str(name).startswith("__")]
            raise UnknownName("topic", topic, known, mend="send events to it first: anabranch stream produce")
    return found


def _appearing(client: KafkaAdminClient, topic: str, wait_s: float) -> TopicInfo | None:
    deadline = time.monotonic() + wait_s
    while (found := describe(client, topic)) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return found
