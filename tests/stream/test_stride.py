"""How rare the events are that teach the weights: as ever where items are few, rarer where they leave the cache."""

import numpy as np

from stream.learner.stride import MOST_NEAR, stride_of
from tests.stream.test_blend import small


def test_few_items_have_one_event_in_each_started_8192() -> None:
    assert all(stride_of(items) == -(-items // 8192) for items in range(1, MOST_NEAR + 1))
    assert [stride_of(items) for items in (1, 1_682, 8_192, 8_193, 9_742, MOST_NEAR)] == [1, 1, 1, 2, 2, 2]


def test_items_beyond_make_it_rarer_four_times_as_fast_and_without_a_leap() -> None:
    assert stride_of(100_000) == 43  # by hand: (16,384 + 4 * 83,616) / 8,192 is 42.8
    strides = np.array([stride_of(items) for items in range(MOST_NEAR, 60_000)])
    assert set(np.diff(strides)) == {0, 1}
    assert stride_of(MOST_NEAR + 1) == 3


def test_weights_move_at_every_nth_event_and_at_no_other() -> None:
    model = small(n_factors=1, places=8, text_dimensions=1)
    model.add_items(f"item {number}" for number in range(20_000))
    assert stride_of(model.n_items) == 4  # by hand: (16,384 + 4 * 3,616) / 8,192 is 3.8
    moved = []
    for event in range(9):
        before = model.weights()
        model.learn_one("ann", f"item {event}")
        moved.append(model.weights() != before)
    assert moved == [event in (4, 8) for event in range(9)]
