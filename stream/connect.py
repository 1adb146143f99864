"""Which client library speaks to the broker."""

from typing import Literal

from common.errors import InvalidSetting, UnknownName
from stream.kafka_log import KafkaLog
from stream.security import PLAIN, Security
from stream.source import Log

Client = Literal["kafka-python", "librdkafka"]
CLIENTS: tuple[Client, ...] = ("kafka-python", "librdkafka")


def open_log(servers: str, security: Security = PLAIN, client: Client = "kafka-python") -> Log:
    """Return the cluster as seen through the client.

    Raises
    ------
    UnknownName
        When there is no such client.
    InvalidSetting
        When it is not installed, or an address cannot be.
    """
    if client not in CLIENTS:
        raise UnknownName("Kafka client", client, list(CLIENTS))
    if client == "kafka-python":
        return KafkaLog(servers, security)
    try:
        from stream.fast_log import FastLog
    except ImportError as error:
        raise InvalidSetting(
            f"the client librdkafka is not installed ({error})",
            mend="pip install 'anabranch[fast]', or leave out --client",
        ) from error
    return FastLog(servers, security)
