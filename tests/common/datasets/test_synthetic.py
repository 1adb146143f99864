"""Made-up data: sizes, seeds, tastes that drift and can be read from the texts."""

from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.datasets.base import Dataset
from common.datasets.registry import load_dataset
from common.datasets.statistics import statistics_of
from common.datasets.synthetic import START_MS, SyntheticSpec, make_synthetic, parse_spec
from common.datasets.words import FORMS, TOPICS
from common.errors import InvalidSetting

sizes = st.builds(
    lambda users, items, more: SyntheticSpec(users, items, users + more),
    st.integers(1, 30),
    st.integers(1, 60),
    st.integers(0, 300),
)


def topic_walks(dataset: Dataset) -> list[list[str]]:
    """Return each user's clicked topics in time order."""
    topics = {item.item_id: item.categories[0] for item in dataset.catalogue}
    walks: dict[str, list[str]] = defaultdict(list)
    for event in dataset.interactions:
        walks[event.user_id].append(topics[event.item_id])
    return list(walks.values())


@pytest.fixture(scope="module")
def large() -> Dataset:
    """Give a data set large enough for statistics."""
    return make_synthetic(SyntheticSpec(users=300, items=2000, events=15_000), seed=1)


@settings(max_examples=30)
@given(sizes, st.integers(0, 3))
def test_any_size_comes_out_as_asked(spec: SyntheticSpec, seed: int) -> None:
    dataset = make_synthetic(spec, seed)
    counted = statistics_of(dataset)
    assert (counted.users, counted.items, counted.interactions) == (spec.users, spec.items, spec.events)
    assert counted.positives == spec.events
    assert len({event.event_id for event in dataset.interactions}) == spec.events
    times = [event.ts for event in dataset.interactions]
    assert times == sorted(times)
    assert times[0] >= START_MS
    published = {item.item_id: item.published_at or 0 for item in dataset.catalogue}
    assert all(published[event.item_id] <= event.ts for event in dataset.interactions)


def test_the_same_seed_gives_the_same_and_another_seed_another() -> None:
    spec = SyntheticSpec(20, 30, 200)
    one, same, other = (make_synthetic(spec, seed) for seed in (4, 4, 5))
    assert one.interactions == same.interactions
    assert list(one.catalogue) == list(same.catalogue)
    assert one.interactions != other.interactions
    assert one.catalogue.texts != other.catalogue.texts


def test_texts_are_of_the_topics_words(large: Dataset) -> None:
    for item in large.catalogue:
        (topic,) = item.categories
        listed = item.text.partition(f"{topic}: ")[2].split(", ")
        assert len(set(listed)) == 4
        assert set(listed) <= set(TOPICS[topic])
        assert item.text.startswith(item.title)


def test_there_are_twenty_topics_of_twenty_five_words_and_none_in_two() -> None:
    counts = Counter(word for words in TOPICS.values() for word in words)
    assert len(TOPICS) == 20
    assert {len(words) for words in TOPICS.values()} == {25}
    assert set(counts.values()) == {1}
    assert len(set(FORMS)) == len(FORMS)


def test_the_next_topic_can_be_told_from_the_last(large: Dataset) -> None:
    pairs = [pair for walk in topic_walks(large) for pair in pairwise(walk)]
    same = sum(last == following for last, following in pairs) / len(pairs)
    # by chance it would be a twentieth
    assert same > 0.4


def test_tastes_drift(large: Dataset) -> None:
    long = [walk for walk in topic_walks(large) if len(walk) >= 100]
    assert len(long) >= 20

    def alike(first: list[str], second: list[str]) -> float:
        left, right = Counter(first), Counter(second)
        return sum((left & right).values()) / max(1, min(len(first), len(second)))

    near = np.mean([alike(walk[:20], walk[20:40]) for walk in long])
    far = np.mean([alike(walk[:20], walk[80:100]) for walk in long])
    assert far < near - 0.05


def test_few_items_have_much_of_the_clicks(large: Dataset) -> None:
    counts = sorted(Counter(event.item_id for event in large.interactions).values(), reverse=True)
    top = sum(counts[: len(large.catalogue) // 10]) / sum(counts)
    assert 0.25 < top < 0.7


def test_users_seldom_click_twice_on_one_item(large: Dataset) -> None:
    pairs = Counter((event.user_id, event.item_id) for event in large.interactions)
    assert len(pairs) > 0.99 * len(large.interactions)


def test_some_items_are_published_while_the_clicks_go_on(large: Dataset) -> None:
    late = [item for item in large.catalogue if (item.published_at or 0) >= START_MS]
    assert 0.1 < len(late) / len(large.catalogue) < 0.3


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("synthetic", SyntheticSpec()),
        ("synthetic:", SyntheticSpec()),
        ("synthetic:users=7", SyntheticSpec(7, 500, 140)),
        ("synthetic:users=1000,items=500,events=20000", SyntheticSpec(1000, 500, 20_000)),
        ("synthetic: events=20_000 , users=30", SyntheticSpec(30, 500, 20_000)),
    ],
)
def test_sizes_are_read_from_the_name(name: str, spec: SyntheticSpec) -> None:
    assert parse_spec(name) == spec


@pytest.mark.parametrize(
    "options",
    ["people=3", "users", "users=", "users=-1", "users=0", "users=many", "users=1e3", "users=²", "users=9,events=8"],
)
def test_sizes_that_make_no_sense_are_refused(options: str) -> None:
    with pytest.raises(InvalidSetting):
        load_dataset(f"synthetic:{options}", notice=print)


def test_it_needs_no_cache_and_no_network() -> None:
    dataset = load_dataset("synthetic:users=5,items=9,events=30", seed=3, fetch=False, notice=print)
    assert dataset.name == "synthetic:users=5,items=9,events=30"
    assert dataset.interactions == make_synthetic(SyntheticSpec(5, 9, 30), 3).interactions


@pytest.mark.slow
def test_a_hundred_thousand_users_fit() -> None:
    counted = statistics_of(load_dataset("synthetic:users=100000,items=20000,events=1000000", notice=print))
    assert (counted.users, counted.items, counted.interactions) == (100_000, 20_000, 1_000_000)
