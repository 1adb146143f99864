"""The decoder takes anything: an event comes out, or MalformedEvent does."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import MalformedEvent
from common.events import ACTIONS, MAX_ID_LENGTH, MAX_TS, Interaction, decode_event, encode_event

GOOD: dict[str, Any] = {
    "v": 1,
    "event_id": "e1",
    "user_id": "u",
    "item_id": "i",
    "action": "rating",
    "value": 4.0,
    "ts": 881250949000,
    "request_id": None,
    "context": {},
}
KNOWN = frozenset(GOOD)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(texts, children, max_size=3),
    max_leaves=8,
)
events = st.builds(
    Interaction,
    event_id=ids,
    user_id=ids,
    item_id=ids,
    action=st.sampled_from(ACTIONS),
    ts=st.integers(0, MAX_TS - 1),
    value=st.floats(allow_nan=False, allow_infinity=False),
    request_id=st.none() | texts,
    context=st.dictionaries(texts, json_values, max_size=3),
    extra=st.dictionaries(texts.filter(lambda key: key not in KNOWN), json_values, max_size=3),
)


def attempt(raw: bytes) -> Interaction | None:
    """Decode; None for MalformedEvent, and any other exception fails the test."""
    try:
        return decode_event(raw)
    except MalformedEvent:
        return None


@given(events)
def test_what_is_encoded_is_decoded_again_unknown_fields_included(event: Interaction) -> None:
    assert decode_event(encode_event(event)) == event


@given(st.binary(max_size=200))
def test_any_bytes_are_an_event_or_malformed(raw: bytes) -> None:
    found = attempt(raw)
    assert found is None or isinstance(found, Interaction)


@given(st.sampled_from(sorted(KNOWN)), json_values)
def test_any_value_in_any_field_is_an_event_or_malformed(field: str, value: Any) -> None:
    found = attempt(json.dumps({**GOOD, field: value}).encode())
    if found is not None:
        # what passed can be passed on
        assert decode_event(encode_event(found)) == found
        assert 0 < len(found.user_id) <= MAX_ID_LENGTH
        assert 0 <= found.ts < MAX_TS


@given(st.data())
def test_a_damaged_record_is_an_event_or_malformed(data: st.DataObject) -> None:
    raw = bytearray(json.dumps(GOOD).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    attempt(bytes(raw))
    attempt(bytes(raw[: data.draw(st.integers(0, len(raw)))]))


@pytest.mark.parametrize("field", ["v", "event_id", "user_id", "item_id", "action", "ts"])
def test_a_missing_required_field_is_malformed(field: str) -> None:
    record = {key: value for key, value in GOOD.items() if key != field}
    with pytest.raises(MalformedEvent):
        decode_event(json.dumps(record).encode())


@pytest.mark.parametrize("field", ["value", "request_id", "context"])
def test_a_missing_optional_field_has_its_default(field: str) -> None:
    record = {key: value for key, value in GOOD.items() if key != field}
    default: Any = {"value": 1.0, "request_id": None, "context": {}}[field]
    assert getattr(decode_event(json.dumps(record).encode()), field) == default


RAW_VALUES = {
    "too large for a float": ("value", "1e999"),
    "NaN": ("value", "NaN"),
    "Infinity": ("value", "Infinity"),
    "an integer of 400 digits for a float": ("value", "9" * 400),
    "an integer of 5000 digits": ("extra", "9" * 5000),
    "too large a number in an unknown field": ("extra", "1e999"),
    "deep nesting": ("extra", "[" * 100_000 + "]" * 100_000),
    "deep nesting, known field": ("context", '{"a":' * 50_000 + "1" + "}" * 50_000),
    "high surrogate alone": ("user_id", r'"\ud800"'),
    "low surrogate alone": ("user_id", r'"\udc00"'),
    "surrogate in an unknown field": ("extra", r'{"\ud800": 1}'),
    "negative time": ("ts", "-1"),
    "time as text": ("ts", '"881250949000"'),
    "time with a point": ("ts", "881250949000.0"),
    "time past what JSON readers keep": ("ts", str(MAX_TS)),
    "time beyond 64 bits": ("ts", "9" * 40),
    "unknown action": ("action", '"stare"'),
    "boolean value": ("value", "true"),
    "null value": ("value", "null"),
    "empty id": ("user_id", '""'),
    "long id": ("item_id", '"' + "x" * (MAX_ID_LENGTH + 1) + '"'),
    "number as id": ("event_id", "7"),
    "later version": ("v", "2"),
    "version as text": ("v", '"1"'),
    "version true": ("v", "true"),
    "version with a point": ("v", "1.0"),
}


@pytest.mark.parametrize("case", RAW_VALUES)
def test_values_that_no_event_may_have(case: str) -> None:
    field, value = RAW_VALUES[case]
    fields = {key: json.dumps(known) for key, known in GOOD.items()} | {field: value}
    raw = "{" + ",".join(f'"{key}":{text}' for key, text in fields.items()) + "}"
    with pytest.raises(MalformedEvent) as caught:
        decode_event(raw.encode())
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("raw", [b"", b"null", b"[]", b'"text"', b"1", b"{}", b"{", b"\xff\xfe", b'{"v":1} tail'])
def test_what_is_no_object_of_the_schema(raw: bytes) -> None:
    with pytest.raises(MalformedEvent):
        decode_event(raw)


def test_a_long_version_is_not_repeated_in_full() -> None:
    raw = json.dumps({**GOOD, "v": "x" * 100_000}).encode()
    with pytest.raises(MalformedEvent) as caught:
        decode_event(raw)
    assert len(str(caught.value)) < 200


def test_ids_of_the_greatest_length_pass() -> None:
    longest = "ü" * MAX_ID_LENGTH
    assert decode_event(json.dumps({**GOOD, "user_id": longest}).encode()).user_id == longest


def test_an_unknown_field_never_overrides_a_known_one() -> None:
    event = Interaction("e", "u", "i", "click", 5, extra={"user_id": "someone else", "v": 9})
    assert decode_event(encode_event(event)) == Interaction("e", "u", "i", "click", 5)
