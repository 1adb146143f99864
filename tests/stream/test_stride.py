"""How rare the events are that teach the weights: each one where items are few, rarer where they leave the cache."""

import numpy as np

from stream.learner.stride import MOST_WEIGHED, stride_of
from tests.stream.test_blend import small


def test_of_few_items_every_event_teaches() -> None:
    assert {stride_of(items) for items in range(1, MOST_WEIGHED + 1)} == {1}


def test_items_beyond_make_it_rarer_twice_as_fast_and_without_a_leap() -> None:
    assert stride_of(9_742) == 4  # by hand: (4,096 + 2 * 5,646) / 4,096 is 3.8
    assert stride_of(100_000) == 48  # by hand: (4,096 + 2 * 95,904) / 4,096 is 47.8
    strides = np.array([stride_of(items) for items in range(MOST_WEIGHED, 60_000)])
    assert set(np.diff(strides)) == {0, 1}
    assert stride_of(MOST_WEIGHED + 1) == 2


def test_weights_move_at_every_nth_event_and_at_no_other() -> None:
    model = small(n_factors=1, places=8, text_dimensions=1)
    model.add_items(f"item {number}" for number in range(10_000))
    assert stride_of(model.n_items) == 4  # by hand: (4,096 + 2 * 5,904) / 4,096 is 3.9
    moved = []
    for event in range(9):
        before = model.weights()
        model.learn_one("ann", f"item {event}")
        moved.append(model.weights() != before)
    assert moved == [event in (4, 8) for event in range(9)]
