"""The decoder takes any bytes: an event, or `MalformedEvent`; nothing else ever comes out."""

import json
import os
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.errors import MalformedEvent
from common.events import ACTIONS, Interaction, decode_event, encode_event
from stream.state import StreamState
from tests.stream.topics import small_mf

GOOD = encode_event(Interaction("e-1", "user-1", "item-1", "click", 5, context={"page": "home"}))

_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
_json = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)
_FIELDS = ("v", "event_id", "user_id", "item_id", "action", "ts", "value", "request_id", "context", "more")
_near = st.dictionaries(st.sampled_from(_FIELDS), st.just(1) | st.sampled_from(ACTIONS) | _json, max_size=10).map(
    lambda fields: json.dumps({"v": 1, **fields}).encode()
)


@st.composite
def _bent(draw: st.DrawFn) -> bytes:
    """Return a good record with some bytes replaced, left out or put in."""
    raw = bytearray(GOOD)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(raw)))
        raw[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(raw)


raw_records = st.binary(max_size=300) | _near | _bent()


def holds(raw: bytes) -> None:
    said = ""
    try:
        event = decode_event(raw)
    except MalformedEvent as error:
        said = str(error)
    if said:
        assert "\n" not in said
        assert len(said) < 2000
        return
    assert decode_event(encode_event(event)) == event
    assert all(0 < len(text) <= 512 for text in (event.event_id, event.user_id, event.item_id))


@settings(max_examples=150)
@given(raw_records)
@example(b"")
@example(b"[" * 100_000)
@example(b'{"v":1e400}')
@example(b'{"v":1,"event_id":"\\ud800","user_id":"u","item_id":"i","action":"click","ts":1}')
@example(GOOD.replace(b'"ts":5', b'"ts":9007199254740992'))
@example(GOOD.replace(b'"value":1.0', b'"value":NaN'))
@example(GOOD.replace(b'"value":1.0', b'"value":1e999'))
def test_any_bytes_are_an_event_or_malformed(raw: bytes) -> None:
    holds(raw)


def _bytes_near(random: Random) -> bytes:
    """Return bytes that are random, or a good record bent in some places; much cheaper than to draw each byte."""
    if random.random() < 0.3:
        return random.randbytes(random.randrange(200))
    raw = bytearray(GOOD)
    for _ in range(random.randrange(1, 6)):
        place = random.randrange(len(raw) + 1)
        raw[place : place + random.randrange(4)] = random.choice(
            [b"", random.randbytes(2), b'"', b"{", b"}", b"\\", b"null", b"1e9", b",", b":", b"[", b"\xff"]
        )
    return bytes(raw)


def _holds_for_a_hundred(random: Random) -> None:
    for _ in range(100):
        holds(_bytes_near(random))


@settings(max_examples=50)
@given(st.randoms(use_true_random=True))
def test_five_thousand_of_them(random: Random) -> None:
    _holds_for_a_hundred(random)


@pytest.mark.slow
@settings(max_examples=1000)
@given(st.randoms(use_true_random=True))
def test_a_hundred_thousand_of_them(random: Random) -> None:
    _holds_for_a_hundred(random)


@settings(max_examples=10)
@given(st.lists(raw_records | st.just(GOOD), min_size=40, max_size=80))
def test_the_worker_applies_learns_or_dead_letters_each(raws: list[bytes]) -> None:
    state = StreamState(small_mf())
    kinds = [state.apply("clicks", 0, offset, raw).kind for offset, raw in enumerate(raws)]
    assert set(kinds) <= {"learned", "neutral", "duplicate", "dead"}
    assert state.events == len(raws)
    assert state.dead_letters == kinds.count("dead")


def test_random_bytes_are_malformed() -> None:
    for _ in range(2000):
        with pytest.raises(MalformedEvent):
            decode_event(b"\x80" + os.urandom(40))
