"""Rows that are dropped and items that wait: by event time, the same after a restart, and off by default."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InvalidSetting
from common.store import pack_arrays, unpack_arrays
from stream.learner.blend import Blend
from stream.learner.mf import MF
from stream.learner.retention import CELLS, DAY_MS, Retention

Make = Callable[..., MF | Blend]
both = pytest.mark.parametrize("make", [MF, Blend], ids=["MF", "Blend"])
SMALL = {"n_factors": 6, "negatives": 4, "window": 5, "seed": 3}
NAMES = ("history", "factors", "bias", "history_sum", "factors_sum", "bias_sum")

_events = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 7), st.sampled_from([1.0, 1.0, -1.0]), st.integers(0, 12)), max_size=50
)


def row_of(learner: MF | Blend, item: str) -> list[np.ndarray]:
    prefix = "item.factors." if isinstance(learner, Blend) else "item."
    row, state = learner.item_row(item), learner.state_arrays()
    return [state[prefix + name][row] for name in NAMES]


def taught(make: Make, **options: object) -> MF | Blend:
    learner = make(**SMALL, **options)
    for day in range(4):
        for turn in range(12):
            learner.learn_one(f"u{turn % 4}", f"i{turn % 6}", x={"ts": day * DAY_MS + turn})
    return learner


@both
def test_an_untouched_row_starts_anew_and_a_touched_one_does_not(make: Make) -> None:
    learner, fresh = taught(make, ttl_days=3.0), make(**SMALL)
    fresh.add_items(["i1"])
    before = row_of(learner, "i1")
    later = 3 * DAY_MS + 11
    for turn in range(6):  # only i0 goes on
        learner.learn_one(f"v{turn}", "i0", -1.0, {"ts": later + (turn + 1) * DAY_MS})
    assert not np.array_equal(before[2], row_of(fresh, "i1")[2])
    for mine, start in zip(row_of(learner, "i1"), row_of(fresh, "i1"), strict=True):
        np.testing.assert_array_equal(mine, start)
    assert not np.array_equal(row_of(learner, "i0")[2], row_of(fresh, "i1")[2])
    assert learner.user_row("u1") is not None
    assert "i1" in {item for item, _ in learner.top_k("nobody", 10)}


@both
def test_one_wrong_date_drops_nothing(make: Make) -> None:
    learner, control = taught(make, ttl_days=3.0), taught(make, ttl_days=3.0)
    learner.learn_one("u", "i0", -1.0, {"ts": 10_000 * DAY_MS})
    control.learn_one("u", "i0", -1.0, {"ts": 3 * DAY_MS + 11})
    for item in ("i1", "i5"):
        for mine, theirs in zip(row_of(learner, item), row_of(control, item), strict=True):
            np.testing.assert_array_equal(mine, theirs)


@both
@pytest.mark.parametrize("ts", [None, "late", -5, 1.5, True, 2**63])
def test_what_is_no_time_moves_no_time(make: Make, ts: object) -> None:
    learner = taught(make, ttl_days=3.0)
    before = learner.state_arrays()["fixed.clock"]
    learner.learn_one("u", "i0", x={"ts": ts})
    np.testing.assert_array_equal(learner.state_arrays()["fixed.clock"], before)


@both
def test_an_item_waits_for_its_row(make: Make) -> None:
    learner = make(**SMALL, admit_at=3)
    learner.learn_many(["a", "b"], ["new", "new"])
    assert (learner.n_items, learner.n_users, learner.events) == (0, 0, 2)
    learner.predict_one("a", "new")  # reading does not count
    assert learner.item_row("new") is None
    learner.learn_one("c", "new")
    assert (learner.item_ids, learner.user_ids) == (("new",), ("c",))
    learner.add_items(["listed"])
    learner.learn_one("c", "listed")
    assert len(learner.history_rows("c")) == 2


def test_ever_so_many_waiting_items_take_no_memory_and_let_nobody_in() -> None:
    retention = Retention(admit_at=5)
    arrays = retention.fixed_arrays()
    retention.wire({}, arrays)
    admitted = sum(retention.admits(f"once {number}") for number in range(3 * CELLS))
    assert admitted < 0.01 * CELLS
    assert sum(array.nbytes for array in arrays.values()) < 70_000


@both
@settings(max_examples=25)
@given(events=_events, cut=st.integers(0, 50))
def test_many_is_one_by_one_and_a_restart_changes_nothing(
    make: Make, events: list[tuple[int, int, float, int]], cut: int
) -> None:
    options = {**SMALL, "ttl_days": 2.0, "admit_at": 2}
    one, many, asked = make(**options), make(**options), make(**options)
    for user, item, y, day in events:
        one.learn_one(f"u{user}", f"i{item}", y, {"ts": day * DAY_MS})
        asked.top_k(f"u{user}", 3)
        asked.learn_one(f"u{user}", f"i{item}", y, {"ts": day * DAY_MS})
    for part in (events[:cut], events[cut:]):
        users, items = [f"u{event[0]}" for event in part], [f"i{event[1]}" for event in part]
        many.learn_many(users, items, [event[2] for event in part], [event[3] * DAY_MS for event in part])
        restored = make(**options)
        restored.load_state(unpack_arrays(pack_arrays(many.state_arrays()), "test"))
        assert restored.state_sha256() == many.state_sha256()
        many = restored
    assert one.state_sha256() == many.state_sha256() == asked.state_sha256()


@both
def test_without_it_time_does_not_matter(make: Make) -> None:
    timed, plain = taught(make), make(**SMALL)
    for _ in range(4):
        for turn in range(12):
            plain.learn_one(f"u{turn % 4}", f"i{turn % 6}")
    assert timed.state_sha256() == plain.state_sha256()
    assert not any(name.endswith(("touched", "clock", "waiting")) for name in timed.state_arrays())


@both
@pytest.mark.parametrize(
    ("name", "value"),
    [("ttl_days", -1.0), ("ttl_days", float("nan")), ("ttl_days", "3"), ("admit_at", 0), ("admit_at", 2.0)],
)
def test_a_setting_that_cannot_be_is_named(make: Make, name: str, value: object) -> None:
    with pytest.raises(InvalidSetting, match=name):
        make(**{name: value})
