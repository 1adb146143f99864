"""Flower Messages read back as replies: nothing of them is used that is not what it should be."""

from typing import Any

from flwr.app import Message, RecordDict

from common.array_record import from_record, size_of
from common.errors import ArtifactCorrupt, UpdateRejected
from common.privacy import PrivacySpend
from common.updates import AdapterUpdate, UpdateMeta
from server.fleet.base import Failure, RawReply, Reply


def _without_error(node: int, message: Message | Failure) -> Message | Failure:
    """Return the message, or why there is nothing to decode."""
    if isinstance(message, Message) and message.has_error():
        return Failure(node, message.error.reason or f"error code {message.error.code}")
    return message


def raw_reply_of(node: int, message: Message | Failure, size: int) -> RawReply:
    """Return a node's answer to a question of a secret sum of so many bytes."""
    message = _without_error(node, message)
    if isinstance(message, Failure):
        return RawReply(node, message, size if message.asked else 0)
    answer = message.content.config_records.get("answer")
    body = None if answer is None else answer.get("body")
    if not isinstance(body, bytes):
        return RawReply(node, Failure(node, "a reply without an answer; expected record answer with its body"), size)
    return RawReply(node, body, size)


def reply_of(node: int, message: Message | Failure, size: int) -> Reply:
    """Return a node's answer to a train request of so many bytes."""
    message = _without_error(node, message)
    if isinstance(message, Failure):
        return Reply(node, message, sent_bytes=size if message.asked else 0)
    received = sum(map(size_of, message.content.array_records.values()))
    try:
        return Reply(node, decode_update(message.content), received, size)
    except UpdateRejected as error:
        return Reply(node, Failure(node, str(error)), received, size)


def decode_update(content: RecordDict) -> AdapterUpdate:
    """Read an update out of a reply.

    Raises
    ------
    UpdateRejected
        When a record or field is missing or of the wrong type; nothing of the reply is used.
    """
    try:
        # flwr's values are unions; what is not of the type that its field has is refused below
        public: dict[str, Any] = dict(content.config_records["meta"])
        measured: dict[str, Any] = dict(content.metric_records["metrics"])
        arrays = from_record(content.array_records["update"])
        privacy = None
        if "sigmas" in public:
            columns = (public["sigmas"], public["rates"], public["counts"])
            steps = tuple(zip(*columns, strict=True))
            privacy = PrivacySpend(public["unit"], float(public["delta"]), steps)
        metrics = {key: float(value) for key, value in measured.items()}
        meta = UpdateMeta(
            client=str(public["client"]),
            base_version=str(public["base_version"]),
            strategy=str(public["strategy"]),
            round=int(public["round"]),
            examples=float(public["examples"]),
            privacy=privacy,
            epsilon=float(public["epsilon"]) if privacy else None,
            metrics=metrics,
        )
    except (KeyError, TypeError, ValueError, OverflowError, ArtifactCorrupt) as error:
        raise UpdateRejected(
            f"a reply that is no update ({type(error).__name__}: {error})", expected="records update, meta and metrics"
        ) from error
    return AdapterUpdate(meta, arrays)
