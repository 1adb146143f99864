"""One interaction, and its one JSON form (schema version 1).

A dataclass serves as both `Interaction` (a row of a data set) and `ClickEvent` (a record on a topic).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

import msgspec

from common.errors import MalformedEvent

Action = Literal["view", "click", "cart", "purchase", "rating", "skip", "impression", "return"]
ACTIONS: tuple[str, ...] = get_args(Action)
SCHEMA_VERSION = 1
MAX_ID_LENGTH = 512
"""Longest id, in characters, that a record may carry; longer ones are malformed, not stored."""
MAX_TS = 2**53
"""Timestamps stay below this, so every JSON reader keeps them exact."""


@dataclass(frozen=True, slots=True)
class Interaction:
    """What one user did with one item.

    Parameters
    ----------
    event_id
        Unique; a second event with the same id is a duplicate.
    user_id, item_id
        Who and what.
    action
        One of `ACTIONS`.
    value
        Stars of a rating, quantity of a purchase; 1.0 where it has no meaning.
    ts
        Milliseconds of event time.
    request_id
        The slate that led to it, when it is known.
    context
        Free JSON object.
    extra
        Unknown fields of the record, kept as they came.
    """

    event_id: str
    user_id: str
    item_id: str
    action: Action
    ts: int
    value: float = 1.0
    request_id: str | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


ClickEvent = Interaction


class _Record(msgspec.Struct, frozen=True):
    """The record on the wire, as far as the schema knows it."""

    v: int
    event_id: str
    user_id: str
    item_id: str
    action: Action
    ts: Annotated[int, msgspec.Meta(ge=0, lt=MAX_TS)]
    value: float = 1.0
    request_id: str | None = None
    context: dict[str, Any] = {}


_KNOWN = frozenset(_Record.__struct_fields__)
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode


def decode_event(raw: bytes) -> Interaction:
    """Decode one record.

    Raises
    ------
    MalformedEvent
        Not JSON, another schema version, a missing or mistyped field, an empty or over-long id.
    """
    try:
        whole = _decode_object(raw)
        if whole.get("v") != SCHEMA_VERSION:
            raise MalformedEvent(f"schema version {whole.get('v')!r:.40}", expected=f"v={SCHEMA_VERSION}")
        record = msgspec.convert(whole, _Record, strict=True)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError, UnicodeDecodeError) as error:
        raise MalformedEvent(
            f"not an event: {error}", expected=f"a JSON object of schema v={SCHEMA_VERSION}"
        ) from error
    for name in ("event_id", "user_id", "item_id"):
        length = len(getattr(record, name))
        if not 0 < length <= MAX_ID_LENGTH:
            raise MalformedEvent(f"{name} of {length} characters", expected=f"1 to {MAX_ID_LENGTH}")
    extra = {} if whole.keys() <= _KNOWN else {key: value for key, value in whole.items() if key not in _KNOWN}
    return Interaction(
        event_id=record.event_id,
        user_id=record.user_id,
        item_id=record.item_id,
        action=record.action,
        ts=record.ts,
        value=record.value,
        request_id=record.request_id,
        context=record.context,
        extra=extra,
    )


def encode_event(event: Interaction) -> bytes:
    """Encode one event; `decode_event` gives it back, unknown fields included."""
    return _encode(
        {
            **event.extra,
            "v": SCHEMA_VERSION,
            "event_id": event.event_id,
            "user_id": event.user_id,
            "item_id": event.item_id,
            "action": event.action,
            "value": event.value,
            "ts": event.ts,
            "request_id": event.request_id,
            "context": event.context,
        }
    )
