"""What one record does to the state: no broker needed."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import CheckpointMismatch, InvalidSetting
from common.events import Interaction, decode_event, encode_event
from stream.learner.blend import Blend
from stream.learner.mf import MF
from stream.recent_ids import RecentIds
from stream.state import StreamState
from tests.stream.topics import MALFORMED, records_with_faults, small_learner, small_mf, some_events


def fed(records: list[bytes], state: StreamState | None = None, start: int = 0) -> StreamState:
    state = state or StreamState(small_mf())
    for offset, record in enumerate(records[start:], start=start):
        state.apply("clicks", 0, offset, record)
    return state


def test_every_record_is_counted_once() -> None:
    records, malformed = records_with_faults(300)
    state = StreamState(small_mf())
    kinds = [state.apply("clicks", 0, offset, record).kind for offset, record in enumerate(records)]
    assert {offset for offset, kind in enumerate(kinds) if kind == "dead"} == malformed
    assert (state.events, state.dead_letters) == (300, len(malformed))
    assert state.duplicates_skipped == kinds.count("duplicate") > 10
    assert state.learned == kinds.count("learned") == state.learner.events
    assert state.learned + state.dead_letters + state.duplicates_skipped + kinds.count("neutral") == 300
    assert state.json_offsets == {"clicks": {"0": 300}}


@pytest.mark.parametrize("record", [None, *MALFORMED], ids=range(len(MALFORMED) + 1))
def test_a_malformed_record_dies_with_a_reason_and_changes_only_the_count(record: bytes | None) -> None:
    state = fed([encode_event(event) for event in some_events(20)])
    before = state.learner.state_sha256()
    outcome = state.apply("clicks", 0, 20, record)
    assert (outcome.kind, outcome.error) == ("dead", "MalformedEvent")
    assert outcome.reason
    assert "\n" not in outcome.reason
    assert state.learner.state_sha256() == before
    assert state.offsets["clicks"][0] == 21


def test_a_decoder_that_raises_anything_makes_a_dead_letter() -> None:
    def decode(raw: bytes) -> Interaction:
        if raw == b"boom":
            raise ZeroDivisionError("first line\nsecond line")
        return decode_event(raw)

    state = StreamState(small_mf(), decode=decode)
    outcome = state.apply("clicks", 0, 0, b"boom")
    assert (outcome.kind, outcome.error) == ("dead", "ZeroDivisionError")
    assert outcome.reason == "the decoder failed: first line second line"
    assert state.apply("clicks", 0, 1, encode_event(some_events(1)[0])).kind == "learned"


@pytest.mark.parametrize(("stars", "shown"), [(1.0, False), (3.0, False), (5.0, False), (None, True)])
def test_what_was_rated_in_any_way_is_not_recommended_again(stars: float | None, shown: bool) -> None:
    learner = Blend(n_factors=4, negatives=2, places=16, text_dimensions=2)
    state = fed([encode_event(event) for event in some_events(60)], StreamState(learner))
    user, item = learner.user_ids[0], "not yet met"
    learner.add_items([item])
    event = Interaction("e-new", user, item, "rating", ts=10**12, value=stars or 1.0)
    event = replace(event, action="impression") if stars is None else event
    state.apply("clicks", 0, 60, encode_event(event))
    assert (item in {known for known, _ in learner.top_k(user, 1000)}) is shown


def test_an_offset_applied_before_changes_nothing() -> None:
    records = [encode_event(event) for event in some_events(50)]
    state = fed(records)
    before = state.learner.state_sha256(), state.events, state.offsets
    assert {state.apply("clicks", 0, offset, record).kind for offset, record in enumerate(records)} == {"stale"}
    assert (state.learner.state_sha256(), state.events, state.offsets) == before


def test_holes_between_offsets_are_no_events() -> None:
    state = StreamState(small_mf())
    for place, event in enumerate(some_events(10)):
        state.apply("clicks", 0, 7 * place + 3, encode_event(event))
    assert (state.events, state.json_offsets) == (10, {"clicks": {"0": 67}})


def test_the_second_copy_is_skipped_whatever_its_place() -> None:
    event = encode_event(some_events(1)[0])
    state = fed([event])
    assert state.apply("clicks", 0, 1, event).kind == "duplicate"
    assert state.apply("clicks", 5, 0, event).kind == "duplicate"
    assert state.learner.events == 1


def test_the_window_of_ids_is_bounded() -> None:
    recent = RecentIds(3)
    assert [recent.add(name) for name in "abca"] == [True, True, True, False]
    assert recent.add("d")
    assert recent.add("a")
    assert len(recent.as_array()) == 3
    assert not any([RecentIds(0).add("a") is False, len(RecentIds(0).as_array())])


@given(names=st.lists(st.sampled_from("abcdefgh"), max_size=40), window=st.integers(0, 5))
def test_ids_go_on_from_their_array(names: list[str], window: int) -> None:
    whole, first = RecentIds(window), RecentIds(window)
    expected = [whole.add(name) for name in names]
    half = len(names) // 2
    found = [first.add(name) for name in names[:half]]
    second = RecentIds(window)
    second.load(first.as_array())
    assert found + [second.add(name) for name in names[half:]] == expected


@settings(max_examples=15)
@given(cut=st.integers(0, 250), kind=st.sampled_from(["mf", "blend"]))
def test_a_restored_state_goes_on_bit_for_bit(cut: int, kind: str) -> None:
    records, _ = records_with_faults(250)
    whole = fed(records, StreamState(small_learner(kind)))
    first = fed(records[:cut], StreamState(small_learner(kind)))
    second = StreamState(small_learner(kind))
    assert second.restore(first.arrays(), first.details()) == []
    fed(records, second, cut)
    assert second.details() == whole.details()
    theirs = whole.arrays()
    for name, array in second.arrays().items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def test_another_learner_is_refused() -> None:
    state = fed(records_with_faults(30)[0])
    for other, named in ((StreamState(MF(n_factors=4)), "n_factors"), (StreamState(small_mf(), every=2), "every")):
        with pytest.raises(CheckpointMismatch, match=named):
            other.restore(state.arrays(), state.details())
    with pytest.raises(CheckpointMismatch, match="recent_ids"):
        StreamState(small_mf()).restore({}, {})


@pytest.mark.parametrize(("repeats", "tested"), [(False, 3), (True, 6)])
def test_repeats_are_tested_where_the_blend_allows_them(repeats: bool, tested: int) -> None:
    state = StreamState(Blend(n_factors=4, negatives=2, places=16, repeats=repeats))
    for number in range(6):
        event = Interaction(event_id=f"e{number}", user_id="ann", item_id=f"i{number % 3}", action="click", ts=number)
        assert state.apply("clicks", 0, number, encode_event(event)).kind == "learned"
    assert state.progressive.evaluated == tested


def test_no_testing_when_not_wanted() -> None:
    state = StreamState(small_mf(), every=0)
    fed([encode_event(event) for event in some_events(60)], state)
    assert state.progressive.evaluated == 0
    assert state.learner.state_sha256() == fed([encode_event(e) for e in some_events(60)]).learner.state_sha256()


def test_settings_that_cannot_be() -> None:
    with pytest.raises(InvalidSetting, match="every -1"):
        StreamState(small_mf(), every=-1)
