"""Anchor and replay: off they change no byte, on they do what they say, and no unit gives more than before."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.continual import Anchor, ReplayMemory
from client.dataset import NodeData, Population
from client.ledger import Ledger
from client.node import Node
from client.train import train
from common.errors import ArtifactCorrupt, InvalidSetting, PrivacyError
from common.ids import arrays_sha256, rng_for
from common.instructions import Objective, PrivacyTerms, TrainRequest
from common.items import Catalogue, Item
from common.privacy import PrivacySpend
from tests.client.federation import ITEMS, Bench, make_data, make_request
from tests.client.test_train import NEVER, plan_for

CATALOGUE = Catalogue(Item(f"i{row}", "title", "text") for row in range(ITEMS))
WINDOW = 4


def data_of(**histories: list[int]) -> NodeData:
    return NodeData({user: np.array(rows, dtype=np.int64) for user, rows in histories.items()}, ITEMS)


def recall(folder: Path, data: NodeData, epoch: str = "e", windows: int = 3) -> NodeData:
    return ReplayMemory(folder / "replay.json", epoch, windows).recall(data, CATALOGUE, WINDOW)


def older(data: NodeData) -> dict[str, list[list[int]]]:
    return {user: [rows.tolist() for rows in windows] for user, windows in data.older.items()}


# -- anchor ----------------------------------------------------------------------------------------------------------


def change(bench: Bench, steps: int, anchor: float) -> dict[str, np.ndarray]:
    """Train by noise alone, which is the same for the same seed however strong the anchor is."""
    plan = plan_for(bench, sample_rate=NEVER, noise_multiplier=1e-9, local_steps=steps, anchor=anchor, learning_rate=2)
    return dict(train(plan, bench.base, make_data(), bench.encoder, bench.cache).arrays)


def test_the_pull_is_the_proximal_step_after_each_step(bench: Bench) -> None:
    free = [change(bench, steps, 0.0) for steps in (1, 2, 3)]
    pulled, kept = change(bench, 3, 0.5), 1 / (1 + 2 * 0.5)
    for name in bench.b_names:
        first, second, third = free[0][name], free[1][name] - free[0][name], free[2][name] - free[1][name]
        expected = ((first * kept + second) * kept + third) * kept
        np.testing.assert_allclose(pulled[name], expected, rtol=1e-3, atol=1e-6)


def test_a_pull_minimises_what_it_says() -> None:
    rng = np.random.default_rng(0)
    start, here = torch.from_numpy(rng.standard_normal(5)), torch.from_numpy(rng.standard_normal(5))
    moved, rate, strength = start.clone(), 0.3, 0.7
    anchor = Anchor([moved], strength, rate)
    moved.copy_(here)
    anchor.pull()
    gradient = strength * (moved - start) + (moved - here) / rate
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


def test_a_strong_anchor_stays_and_learns_less(bench: Bench) -> None:
    data = make_data()
    norms = []
    for anchor in (0.0, 1.0, 1e6):
        plan = plan_for(bench, local_steps=3, anchor=anchor)
        arrays = train(plan, bench.base, data, bench.encoder, bench.cache).arrays
        norms.append(sum(float((array**2).sum()) for array in arrays.values()) ** 0.5)
    assert norms[0] > norms[1] > norms[2]
    assert norms[2] < 1e-4 * norms[0]


def test_an_anchor_that_pulls_nothing_is_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"anchor 0\.1 over one local step"):
        Objective(anchor=0.1)
    for bad in (-0.1, float("nan"), float("inf")):
        with pytest.raises(InvalidSetting, match="finite anchor"):
            Objective(anchor=bad, local_steps=2)
    for bad in (-0.1, 1.0, float("nan")):
        with pytest.raises(InvalidSetting, match="replay"):
            Objective(replay=bad)


# -- off, nothing changes --------------------------------------------------------------------------------------------


def test_a_request_without_them_reads_as_before_they_were_known(bench: Bench) -> None:
    flat = make_request(bench).flat()
    assert {key for key in flat if key.startswith("objective.")} == {
        f"objective.{name}" for name in ("window", "negatives", "temperature", "local_steps", "learning_rate", "clip")
    }
    assert TrainRequest.from_flat(flat) == make_request(bench)
    both = make_request(bench, objective=Objective(local_steps=2, anchor=0.5, replay=0.25))
    assert TrainRequest.from_flat(both.flat()) == both


@given(st.integers(0, 2**32 - 1), st.sampled_from(["user", "example", "client", "off"]), st.floats(0.1, 1))
def test_without_replay_old_windows_change_no_draw(seed: int, unit: str, rate: float) -> None:
    new = make_data(users=5, seed=seed)
    both = NodeData(new.histories, ITEMS, {"u1": [np.array([1, 2, 3])], "gone": [np.array([4, 5])]})
    found = [
        data.population(unit, WINDOW, 0.0).draw(rate, 3, rng_for("draw", seed))  # type: ignore[arg-type]  # a unit
        for data in (new, both)
    ]
    assert [r.window.tolist() for r in found[0]] == [r.window.tolist() for r in found[1]]
    assert [r.negatives.tolist() for r in found[0]] == [r.negatives.tolist() for r in found[1]]


def test_off_they_change_no_byte_of_an_answer(bench: Bench, tmp_path: Path) -> None:
    request = make_request(bench)
    plain = Node("n", make_data(), tmp_path / "a.sqlite", 7).answer(request, bench.base, bench.encoder, bench.cache)
    zero = replace(request, objective=replace(request.objective, anchor=0.0, replay=0.0))
    again = Node("n", make_data(), tmp_path / "b.sqlite", 7).answer(zero, bench.base, bench.encoder, bench.cache)
    assert arrays_sha256(plain.arrays.items()) == arrays_sha256(again.arrays.items())
    other = replace(request, objective=replace(request.objective, anchor=0.5))
    pulled = Node("n", make_data(), tmp_path / "c.sqlite", 7).answer(other, bench.base, bench.encoder, bench.cache)
    assert arrays_sha256(plain.arrays.items()) != arrays_sha256(pulled.arrays.items())


# -- what a node remembers -------------------------------------------------------------------------------------------


def test_what_left_the_data_is_remembered_and_what_is_there_is_not(tmp_path: Path) -> None:
    first = recall(tmp_path, data_of(a=[0, 1, 2, 3, 4, 5], b=[6, 7]))
    assert older(first) == {}
    second = recall(tmp_path, data_of(a=[4, 5, 9], b=[6, 7, 8]))
    assert older(second) == {"a": [[0, 1, 2, 3]]}
    assert older(recall(tmp_path, data_of(a=[4, 5, 9], b=[6, 7, 8]))) == older(second)
    third = recall(tmp_path, data_of(c=[10, 11]))
    assert older(third) == {"a": [[0, 1, 2, 3], [4, 5, 9]], "b": [[6, 7, 8]]}
    assert third.users == ("a", "b", "c")


def test_no_click_is_old_and_new_at_once_even_when_data_comes_back(tmp_path: Path) -> None:
    whole = data_of(a=[0, 1, 2, 3, 4, 5, 6, 7])
    recall(tmp_path, whole)
    recall(tmp_path, data_of(a=[6, 7]))
    assert older(recall(tmp_path, whole)) == {}
    gone_again = recall(tmp_path, data_of(a=[6, 7]))
    assert older(gone_again) == {"a": [[0, 1, 2, 3], [4, 5]]}


def test_of_a_users_windows_a_uniform_sample_is_kept(tmp_path: Path) -> None:
    """Ten windows come by, three are kept: each in three tenths of the people."""
    people, kept = 300, np.zeros(10)
    wide = Catalogue(Item(f"i{row}", "title", "text") for row in range(24))
    memory = ReplayMemory(tmp_path / "replay.json", "e", 3)
    for turn in range(11):
        rows = np.array([2 * turn, 2 * turn + 1], dtype=np.int64)
        found = memory.recall(NodeData({f"u{user}": rows for user in range(people)}, 24), wide, WINDOW)
    for windows in found.older.values():
        assert len(windows) == 3
        for window in windows:
            kept[window[0] // 2] += 1
    # binomial, 300 people at three in ten: mean 90, deviation 7.9; five of them
    assert np.abs(kept - 90).max() < 5 * (300 * 0.3 * 0.7) ** 0.5


def test_which_windows_stay_does_not_depend_on_what_is_in_them(tmp_path: Path) -> None:
    kept = []
    for number, shift in enumerate((0, 1)):
        memory = ReplayMemory(tmp_path / f"{number}.json", "e", 2)
        for turn in range(7):
            found = memory.recall(data_of(a=[(4 * turn + shift) % 24, (4 * turn + 2 + shift) % 24]), CATALOGUE, WINDOW)
        kept.append([(int(window[0]) - shift) // 4 for window in found.older["a"]])
    assert kept[0] == kept[1]


def test_items_that_the_catalogue_lost_are_forgotten(tmp_path: Path) -> None:
    recall(tmp_path, data_of(a=[0, 1, 2, 3]))
    recall(tmp_path, data_of(a=[8, 9]))
    shorter = Catalogue(Item(f"i{row}", "title", "text") for row in range(1, ITEMS))
    now = NodeData({"a": np.array([7, 8])}, ITEMS - 1)  # items 8 and 9, one row earlier
    found = ReplayMemory(tmp_path / "replay.json", "e", 3).recall(now, shorter, WINDOW)
    assert older(found) == {"a": [[0, 1, 2]]}


@pytest.mark.parametrize("damage", ["torn", "edited", "format", "empty"])
def test_a_damaged_memory_is_refused(tmp_path: Path, damage: str) -> None:
    recall(tmp_path, data_of(a=[0, 1, 2, 3]))
    path = tmp_path / "replay.json"
    whole = path.read_bytes()
    content = json.loads(whole)
    content["epochs"]["e"]["present"]["a"][0] = "i9"
    path.write_bytes(
        {
            "torn": whole[: len(whole) // 2],
            "edited": json.dumps(content).encode(),
            "format": whole.replace(b'"format":1', b'"format":2'),
            "empty": b"",
        }[damage]
    )
    with pytest.raises(ArtifactCorrupt, match=r"replay\.json .*delete it"):
        recall(tmp_path, data_of(a=[0, 1]))


# -- what is drawn of it ---------------------------------------------------------------------------------------------


def mixed(unit: str, replay: float) -> Population:
    """Return the population of a node whose users have new clicks 0 to 7, old ones 8 to 15, or both."""
    new = {f"u{user:02d}": np.arange(8) for user in range(40)}
    old = {f"u{user:02d}": [np.arange(8, 12), np.arange(12, 16)] for user in range(20, 60)}
    return NodeData(new, ITEMS, old).population(unit, WINDOW, replay)  # type: ignore[arg-type]  # a unit


def test_a_user_gives_one_window_a_step_old_or_new_by_the_share() -> None:
    population = mixed("user", 0.3)
    assert (len(population), population.expected(0.5)) == (60, 30)
    rng, old, steps = rng_for("steps"), 0, 200
    for _ in range(steps):
        records = population.draw(1.0, 3, rng)
        assert len(records) == 60
        is_old = [bool((record.window >= 8).all()) for record in records]
        assert all(old or bool((record.window < 8).all()) for old, record in zip(is_old, records, strict=True))
        assert is_old[:20] == [False] * 20
        assert is_old[40:] == [True] * 20
        old += sum(is_old[20:40])
    assert abs(old / (20 * steps) - 0.3) < 5 * (0.3 * 0.7 / (20 * steps)) ** 0.5


def test_negatives_avoid_what_the_user_ever_clicked() -> None:
    for record in mixed("user", 0.5).draw(1.0, 5, rng_for("negatives"))[20:40]:
        assert (record.negatives >= 16).all()


def test_under_example_an_old_window_is_a_unit_drawn_less_often() -> None:
    population = mixed("example", 0.25)
    assert len(population) == 40 * 2 + 40 * 2
    assert population.expected(0.5) == 0.5 * (80 + 0.25 * 80)
    rng, steps, counts = rng_for("steps"), 300, np.zeros(2)
    for _ in range(steps):
        is_old = [bool(record.window[0] >= 8) for record in population.draw(0.5, 3, rng)]
        counts += (is_old.count(False), is_old.count(True))
    for found, chance in zip(counts / (80 * steps), (0.5, 0.125), strict=True):
        assert abs(found - chance) < 5 * (chance * (1 - chance) / (80 * steps)) ** 0.5
    units = [rows.tolist() for rows in population.sequences]
    assert all(len(rows) <= WINDOW for rows in units)  # fixed: a record is the whole unit


@pytest.mark.parametrize("unit", ["user", "example"])
def test_one_unit_moves_a_step_by_no_more_than_twice_the_clip(bench: Bench, unit: str) -> None:
    plan = plan_for(bench, unit=unit, local_steps=1, temperature=1e-3, replay=0.9)  # gradients far beyond the clip
    new = make_data(users=3, clicks=4).histories
    old = {"u1": [np.array([1, 5, 9, 3])], "u2": [np.array([2, 4, 8, 6])]}
    other = {**old, "u2": [np.array([7, 11, 13, 10])]}
    first, second = (
        train(plan, bench.base, NodeData(new, ITEMS, each), bench.encoder, bench.cache) for each in (old, other)
    )
    apart = sum(((first.arrays[n] - second.arrays[n]) ** 2).sum() for n in bench.b_names) ** 0.5
    assert 0 < apart * first.expected_records <= 2 * plan.clip * (1 + 1e-4)


# -- what it costs ---------------------------------------------------------------------------------------------------


def answer(folder: Path, bench: Bench, data: NodeData, epoch: str, number: int) -> None:
    request = make_request(bench, round=number, objective=Objective(window=WINDOW, negatives=3, replay=0.5))
    node = Node("n", recall(folder, data, epoch), folder / "ledger.sqlite", 7, epoch)
    node.answer(request, bench.base, bench.encoder, bench.cache)


def spent(folder: Path, epoch: str) -> int:
    ledger = Ledger(folder / "ledger.sqlite", "n", epoch=epoch)
    try:
        return sum(count for _, _, count in ledger.state(PrivacySpend("user", 1e-3)).spend.steps)
    finally:
        ledger.close()


def test_old_clicks_are_charged_in_the_epoch_that_they_were_kept_in(bench: Bench, tmp_path: Path) -> None:
    answer(tmp_path, bench, data_of(a=[0, 1, 2, 3], b=[4, 5, 6]), "spring", 1)
    answer(tmp_path, bench, data_of(a=[8, 9, 10]), "spring", 2)  # b is gone from the data, and still trained on
    assert spent(tmp_path, "spring") == 2
    # new people: none of the old windows goes with them, so the charge is theirs alone
    strangers = recall(tmp_path, data_of(x=[0, 1, 2], y=[3, 4, 5]), "summer")
    assert strangers.users == ("x", "y")
    answer(tmp_path, bench, data_of(x=[0, 1, 2], y=[3, 4, 5]), "summer", 3)
    assert (spent(tmp_path, "spring"), spent(tmp_path, "summer")) == (2, 1)
    # b, whose clicks are only remembered, still belongs to the epoch in which they are
    with pytest.raises(PrivacyError):
        answer(tmp_path, bench, data_of(b=[7, 8, 9]), "summer", 4)


def test_an_answer_with_other_old_windows_is_another_release(bench: Bench, tmp_path: Path) -> None:
    request = make_request(bench, objective=Objective(window=WINDOW, negatives=3, replay=0.5))
    new, seen = make_data().histories, set()
    for rows in ([1, 2], [1, 3]):
        node = Node("n", NodeData(new, ITEMS, {"u0": [np.array(rows)]}), tmp_path / "ledger.sqlite", 7)
        node.answer(request, bench.base, bench.encoder, bench.cache)
        seen.add(node.data.digest())
    assert len(seen) == 2
    ledger = Ledger(tmp_path / "ledger.sqlite", "n")
    assert ledger.state(PrivacySpend("user", 1e-3)).entries == 2
    ledger.close()


def test_old_people_count_where_delta_is_held_against_their_number(bench: Bench, tmp_path: Path) -> None:
    terms = PrivacyTerms("user", 8.0, 0.2, 1.0)  # below one over the four that are there, not over five
    request = make_request(bench, privacy=terms, objective=Objective(window=WINDOW, negatives=3, replay=0.5))
    data = NodeData(make_data().histories, ITEMS, {"gone": [np.array([1, 2])]})
    with pytest.raises(InvalidSetting, match="5 records"):
        Node("n", data, tmp_path / "ledger.sqlite", 7).answer(request, bench.base, bench.encoder, bench.cache)
