"""Records: what a node draws from its own clicks, and what it never draws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.dataset import NodeData, sample_negatives
from common.errors import EmptyData, InvalidSetting
from common.events import Action, Interaction
from common.ids import rng_for
from common.items import Catalogue, Item

ITEMS = 30
histories = st.dictionaries(
    st.text("abc", min_size=1, max_size=3), st.lists(st.integers(0, ITEMS - 1), min_size=2, max_size=25), min_size=1
)
windows = st.integers(2, 9)


def data_of(clicks: dict[str, list[int]]) -> NodeData:
    return NodeData({user: np.array(rows) for user, rows in clicks.items()}, ITEMS)


def event(user: str, item: str, ts: int, action: Action = "click", value: float = 1.0) -> Interaction:
    return Interaction(f"{user}{item}{ts}", user, item, action, ts, value)


@given(histories, windows, st.integers(0, 2**32))
def test_a_users_record_is_a_stretch_of_her_clicks(clicks: dict[str, list[int]], window: int, seed: int) -> None:
    data = data_of(clicks)
    records = data.population("user", window).draw(1.0, 3, rng_for(seed))
    assert len(records) == len(clicks)
    for record, user in zip(records, sorted(clicks), strict=True):
        own = clicks[user]
        assert len(record.window) == min(window, len(own))
        found = record.window.tolist()
        assert any(own[i : i + len(found)] == found for i in range(len(own)))


@given(histories, windows)
def test_example_windows_cut_the_history_and_share_no_click(clicks: dict[str, list[int]], window: int) -> None:
    population = data_of(clicks).population("example", window)
    pieces = [rows.tolist() for rows in population.sequences]
    expected = []
    for user in sorted(clicks):
        own = clicks[user]
        cut = [own[i : i + window] for i in range(0, len(own), window)]
        assert [row for piece in cut for row in piece] == own
        expected += [piece for piece in cut if len(piece) >= 2]
    assert pieces == expected


@given(histories, windows, st.integers(0, 2**32))
def test_example_records_are_the_same_at_every_step(clicks: dict[str, list[int]], window: int, seed: int) -> None:
    population = data_of(clicks).population("example", window)
    rng = rng_for(seed)
    first, second = (population.draw(1.0, 2, rng) for _ in range(2))
    assert [r.window.tolist() for r in first] == [r.window.tolist() for r in second]


@given(st.sets(st.integers(0, ITEMS - 1), min_size=1, max_size=ITEMS - 1), st.integers(1, 40), st.integers(0, 2**32))
def test_a_negative_is_never_own(own: set[int], count: int, seed: int) -> None:
    drawn = sample_negatives(np.array(sorted(own)), count, ITEMS, rng_for(seed))
    assert drawn.shape == (count,)
    assert not own & set(drawn.tolist())
    assert drawn.min() >= 0
    assert drawn.max() < ITEMS


def test_who_owns_everything_gets_anything() -> None:
    drawn = sample_negatives(np.arange(ITEMS), 50, ITEMS, rng_for("all"))
    assert drawn.shape == (50,)
    assert set(drawn.tolist()) <= set(range(ITEMS))


def test_negatives_are_uniform_over_the_rest() -> None:
    rng = rng_for("uniform")
    own = np.array([0, 1, 2])
    counts = np.bincount(np.concatenate([sample_negatives(own, 50, ITEMS, rng) for _ in range(2000)]), minlength=ITEMS)
    assert not counts[:3].any()
    expected = counts.sum() / (ITEMS - 3)
    assert float(((counts[3:] - expected) ** 2 / expected).sum()) < 60  # chi-squared, 26 degrees: p ~ 2e-4


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
def test_units_are_drawn_at_the_rate_each_on_its_own(rate: float) -> None:
    users, draws = 80, 300
    population = data_of({f"{user:03}": [0, 1] for user in range(users)}).population("user", 2)
    rng = rng_for("poisson", str(rate))
    sizes = np.array([len(population.draw(rate, 1, rng)) for _ in range(draws)])
    deviation = np.sqrt(users * rate * (1 - rate))
    assert sizes.mean() == pytest.approx(users * rate, abs=4 * deviation / np.sqrt(draws) + 1e-9)
    assert sizes.var() == pytest.approx(deviation**2, rel=0.3, abs=1e-9)  # a fixed batch size would have none


def test_small_nodes_draw_empty_batches() -> None:
    population = data_of({"a": [0, 1], "b": [2, 3]}).population("user", 2)
    rng = rng_for("empty")
    empty = sum(not population.draw(0.3, 1, rng) for _ in range(1000))
    assert 420 < empty < 560  # 0.7 ** 2 = 0.49


def test_windows_begin_anywhere() -> None:
    population = data_of({"a": list(range(20))}).population("user", 5)
    rng = rng_for("begin")
    begins = {int(population.draw(1.0, 1, rng)[0].window[0]) for _ in range(500)}
    assert begins == set(range(16))


def test_clicks_are_put_in_time_order_and_dislikes_left_out() -> None:
    catalogue = Catalogue(Item(name, name, name) for name in "xyz")
    data = NodeData.from_interactions(
        [
            event("u", "z", 9),
            event("u", "x", 1),
            event("u", "y", 2, "rating", 2.0),
            event("u", "y", 3, "rating", 5.0),
            event("u", "gone", 4),
            event("u", "x", 5, "skip"),
        ],
        catalogue,
    )
    assert data.histories["u"].tolist() == [0, 1, 2]


def test_a_user_with_one_click_takes_no_part() -> None:
    assert list(data_of({"one": [1], "two": [1, 2], "none": []}).histories) == ["two"]


@pytest.mark.parametrize("clicks", [{}, {"a": [1]}, {"a": [], "b": [3]}])
def test_a_node_without_records_is_refused(clicks: dict[str, list[int]]) -> None:
    with pytest.raises(EmptyData, match="the node takes no part"):
        data_of(clicks)


def test_a_window_of_one_click_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="a window of 1 clicks"):
        data_of({"a": [1, 2]}).population("user", 1)


@given(histories)
def test_the_digest_follows_the_data(clicks: dict[str, list[int]]) -> None:
    data = data_of(clicks)
    assert data.digest() == data_of(dict(reversed(clicks.items()))).digest()
    user = min(clicks)
    changed = {**clicks, user: [*clicks[user][:-1], (clicks[user][-1] + 1) % ITEMS]}
    assert data_of(changed).digest() != data.digest()
