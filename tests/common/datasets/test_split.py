"""Splits and partitions keep their laws for any input."""

import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.datasets.base import Dataset
from common.datasets.split import global_time_split, hidden_items, partition_users, positives
from common.errors import EmptyData, InvalidSetting
from common.events import Interaction
from common.items import Catalogue, Item


def at(moments: list[int]) -> list[Interaction]:
    """Return an interaction at each moment, numbered in the order given."""
    return [Interaction(f"e{number}", "u", "i", "click", ts) for number, ts in enumerate(moments)]


moments = st.lists(st.integers(0, 50), min_size=2, max_size=60)
shares = st.floats(0.001, 0.999)


@given(moments, shares)
def test_the_two_parts_are_the_whole_in_time_order(times: list[int], share: float) -> None:
    train, test = global_time_split(at(times), share)
    assert list(train + test) == sorted(at(times), key=lambda event: event.ts)
    assert train[-1].ts <= test[0].ts


@given(moments, shares)
def test_the_share_is_kept_to_within_one_and_no_part_is_empty(times: list[int], share: float) -> None:
    train, test = global_time_split(at(times), share)
    assert train
    assert test
    assert abs(len(train) - share * len(times)) <= 1


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=30, unique=True), shares, st.randoms())
def test_the_order_of_the_input_does_not_matter(times: list[int], share: float, rng: random.Random) -> None:
    events = at(times)
    shuffled = events.copy()
    rng.shuffle(shuffled)
    assert global_time_split(events, share) == global_time_split(shuffled, share)


@given(moments, shares, shares)
def test_a_larger_share_trains_on_the_same_and_more(times: list[int], one: float, two: float) -> None:
    less, _ = global_time_split(at(times), min(one, two))
    more, _ = global_time_split(at(times), max(one, two))
    assert more[: len(less)] == less


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(InvalidSetting, match="share"):
        global_time_split(at([1, 2, 3]), share)


@pytest.mark.parametrize("times", [[], [1]])
def test_too_few_to_split(times: list[int]) -> None:
    with pytest.raises(EmptyData):
        global_time_split(at(times), 0.5)


def test_eighty_percent_of_the_known_count_cuts_where_the_protocol_does() -> None:
    train, test = global_time_split(at(list(range(55_375))), 0.8)
    assert (len(train), len(test)) == (44_300, 11_075)


users = st.sets(st.text(min_size=1, max_size=6), min_size=1, max_size=40)


@given(users, st.data(), st.integers(0, 5))
def test_every_user_is_on_exactly_one_node_and_nodes_are_even(ids: set[str], data: st.DataObject, seed: int) -> None:
    nodes = data.draw(st.integers(1, len(ids)))
    parts = partition_users(ids, nodes, seed)
    assert list(parts) == list(range(nodes))
    dealt = [user for part in parts.values() for user in part]
    assert sorted(dealt) == sorted(ids)
    sizes = [len(part) for part in parts.values()]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


@given(users, st.randoms(), st.integers(0, 5))
def test_order_and_repetition_do_not_matter(ids: set[str], rng: random.Random, seed: int) -> None:
    listed = sorted(ids) * 2
    rng.shuffle(listed)
    nodes = max(1, len(ids) // 2)
    assert partition_users(listed, nodes, seed) == partition_users(sorted(ids), nodes, seed)


def test_another_seed_deals_otherwise_and_the_same_seed_the_same() -> None:
    ids = [f"u{number}" for number in range(100)]
    assert partition_users(ids, 5, seed=1) == partition_users(ids, 5, seed=1)
    assert partition_users(ids, 5, seed=1) != partition_users(ids, 5, seed=2)


def test_another_process_deals_alike() -> None:
    program = (
        "from common.datasets.split import partition_users\n"
        "print(partition_users({f'u{n}' for n in range(20)}, 3, 7)[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONHASHSEED": "5"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(partition_users({f"u{n}" for n in range(20)}, 3, 7)[1])


def test_more_nodes_than_users_is_refused_with_the_numbers() -> None:
    with pytest.raises(InvalidSetting, match="4 nodes for 3 users"):
        partition_users(["a", "b", "c"], 4, seed=0)
    with pytest.raises(InvalidSetting, match="0 nodes"):
        partition_users(["a"], 0, seed=0)
    with pytest.raises(InvalidSetting, match="1 nodes for 0 users"):
        partition_users([], 1, seed=0)


def test_positives_are_the_liked_ones_in_time_order() -> None:
    events = (
        Interaction("1", "u", "i", "rating", 1, 5.0),
        Interaction("2", "u", "i", "rating", 2, 3.0),
        Interaction("3", "u", "i", "skip", 3),
        Interaction("4", "u", "i", "click", 4),
    )
    dataset = Dataset("d", Catalogue([Item("i", "i", "i")]), events, "none")
    assert [event.event_id for event in positives(dataset)] == ["1", "4"]


@given(st.sets(st.text(max_size=8), max_size=40), st.text(max_size=8), shares, shares, st.integers(0, 9))
def test_an_item_is_hidden_whatever_others_there_are(
    ids: set[str], item: str, one: float, two: float, seed: int
) -> None:
    low, high = sorted((one, two))
    assert hidden_items(ids, low, seed) <= hidden_items(ids, high, seed) <= ids
    assert (item in hidden_items({*ids, item}, low, seed)) == bool(hidden_items([item], low, seed))


def test_about_the_share_is_hidden() -> None:
    ids = [f"i{number}" for number in range(2000)]
    assert 0.17 < len(hidden_items(ids, 0.2, 0)) / len(ids) < 0.23
    assert hidden_items(ids, 0.2, 0) != hidden_items(ids, 0.2, 1)
    assert hidden_items(ids, 0.0, 0) == frozenset()


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_hidden_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(InvalidSetting, match="hidden share"):
        hidden_items(["a"], share, 0)
