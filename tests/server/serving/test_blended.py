"""One pass over the items, with sums taken beforehand, scores as every member over all items does."""

from dataclasses import replace

import numpy as np
import pytest

from common.blends import BlendMembers
from common.ids import rng_for
from common.items import Catalogue, Item
from common.manifests import Manifest
from common.snapshots import MFSnapshot
from server.serving.blended import Asked, blended
from server.serving.bundle import Bundle, Model, Stream
from server.serving.recommend import Question, recommend
from server.serving.sums import MOST, ItemSums
from server.serving.tables import ItemTable
from tests.oracles.best import best_slowly
from tests.oracles.served_blend import blended_slowly

ITEMS, FACTORS, TEXTS, WIDTH = 300, 6, 4, 9
NOTHING = np.empty(0, dtype=np.int64)


def a_bundle(seed: int, *, text_columns: int = TEXTS, repeats: bool = False) -> Bundle:
    """Return a bundle of random members, in which every fifth item has no neighbours."""
    rng = rng_for("served-blend", seed)
    sizes = np.where(np.arange(ITEMS) % 5 == 0, 0, rng.integers(1, 9, ITEMS))
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    users, seen = 3, np.sort(rng.choice(ITEMS, 12, replace=False)).astype(np.int32)
    lists = np.array([0, 0, 5, 12], dtype=np.int64)
    blend = BlendMembers(
        weights=rng.random((2, 4)),
        pair_starts=starts,
        pair_items=rng.integers(0, ITEMS, starts[-1]).astype(np.int32),
        pair_weights=rng.random(starts[-1]).astype(np.float32),
        neighbour_decay=np.exp(-np.arange(8) / 4.0).astype(np.float32),
        popularity=np.log1p(rng.integers(0, 90, ITEMS)).astype(np.float32),
        positives=np.array([0, 5, 7]),
        habit=rng.random(12).astype(np.float32) if repeats else np.empty(0, dtype=np.float32),
        opening_weights=np.empty((0, 4)),
        opening_habit=np.empty(0, dtype=np.float32),
        moments=np.empty(0, dtype=np.int64),
        tried_starts=lists,
        tried_items=seen,
        buckets=(0, 6),
        visit_ms=1_800_000,
        unknown_popularity=0.0,
        text_columns=text_columns,
        repeats=repeats,
    )
    rows = rng.standard_normal((ITEMS, FACTORS + text_columns)).astype(np.float32)
    snapshot = MFSnapshot(
        item_ids=tuple(str(row) for row in range(ITEMS)),
        history_factors=rng.standard_normal(rows.shape).astype(np.float32),
        item_factors=rows,
        item_bias=rng.standard_normal(ITEMS).astype(np.float32),
        item_counts=np.ones(ITEMS, dtype=np.int64),
        user_ids=tuple(f"u{user}" for user in range(users)),
        history_starts=lists,
        history_items=seen,
        seen_starts=lists,
        seen_items=seen,
        recency=10.0,
        window=50,
        events=12,
        offsets={},
        blend=blend,
    )
    vectors = rng.standard_normal((ITEMS, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    catalogue = Catalogue([Item(str(row), f"Title {row}", "") for row in range(ITEMS)])
    model = Model(Manifest("adapter", "v1", (), 0), {}, vectors)
    return Bundle(ItemTable.of(catalogue), model, Stream(Manifest("snapshot", "s1", (), 0), snapshot))


def asked_of(bundle: Bundle, history: np.ndarray, user: str | None = None) -> Asked:
    seen = np.concatenate([bundle.person(user).seen.astype(np.int64), history])
    return Asked(history, len(history), seen, bundle.habit_of(bundle.person(user)), history)


CASES = [(columns, repeats) for columns in (0, TEXTS) for repeats in (False, True)]


@pytest.mark.parametrize(("columns", "repeats"), CASES)
@pytest.mark.parametrize("length", [0, 1, 4, 30])
@pytest.mark.parametrize("with_query", [False, True])
def test_scores_are_those_of_every_member_over_all_items(
    columns: int, repeats: bool, length: int, with_query: bool
) -> None:
    bundle = a_bundle(length, text_columns=columns, repeats=repeats)
    assert bundle.stream is not None
    blend = bundle.stream.snapshot.blend
    assert blend is not None
    # with an item liked twice, and one without neighbours
    history = rng_for("history", length).integers(0, ITEMS, length)
    history[:2] = 10
    asked = asked_of(bundle, history, "u2")
    query = bundle.model.item_vectors[7] if with_query else None
    expected = blended_slowly(bundle, asked, query)
    found = blended(bundle, bundle.stream, blend, asked, query)
    exact = found.at(np.arange(ITEMS))
    np.testing.assert_allclose(exact.scores, expected, rtol=1e-4, atol=1e-4)
    # the quick ones up to a constant
    difference = found.quick().of_all() - expected
    assert np.abs(difference - difference.mean()).max() < 1e-4
    assert set(found.kinds) == set(exact.kinds)
    parts = sum(member.coefficient * member.z for member in exact.members.values())
    np.testing.assert_allclose(parts, exact.scores, rtol=1e-12, atol=1e-12)


def test_a_slate_is_the_best_of_the_slow_scores() -> None:
    bundle = a_bundle(5)
    history = ("3", "44", "44", "101")
    rows = np.array([int(item) for item in history])
    expected = blended_slowly(bundle, asked_of(bundle, rows), None)
    left = np.ones(ITEMS, dtype=bool)
    left[rows] = False
    slate = recommend(bundle, Question(history=history, k=40), None, "r")
    assert [int(item.item_id) for item in slate.items] == best_slowly(expected, left, 40)


def test_nothing_left_to_show_is_no_error() -> None:
    bundle = a_bundle(6)
    assert bundle.stream is not None
    assert bundle.stream.snapshot.blend is not None
    everything = np.arange(ITEMS)
    asked = Asked(everything, ITEMS, everything, np.empty(0, dtype=np.float32), everything)
    found = blended(bundle, bundle.stream, bundle.stream.snapshot.blend, asked, None)
    assert not found.at(everything).scores.any()
    assert recommend(bundle, Question(history=tuple(bundle.items), k=5), None, "r").items == ()


def test_sums_are_those_of_the_products() -> None:
    rng = rng_for("sums", 0)
    factors, bias = rng.standard_normal((70, 5)).astype(np.float32), rng.standard_normal(70).astype(np.float32)
    sums = ItemSums.of(factors, bias, bias)
    u = rng.standard_normal(5)
    for more in ((0.0, 0.0), (1.0, 0.0), (0.5, -2.5)):
        raw = factors.astype(np.float64) @ u + sum(more) * bias.astype(np.float64)
        np.testing.assert_allclose(sums.of_product(u, *more), (raw.sum(), raw @ raw), rtol=1e-9)
    again = ItemSums.from_arrays(sums.arrays())
    assert again.of_product(u, 1.0, 0.0) == sums.of_product(u, 1.0, 0.0)


@pytest.mark.parametrize("items", [0, 1, MOST, 3 * MOST + 1])
def test_of_very_many_items_some_tell_the_sums(items: int) -> None:
    rows = rng_for("estimated", items).standard_normal((items, 4)).astype(np.float32)
    exact, found = ItemSums.of(rows), ItemSums.estimated(rows)
    if items <= MOST:
        np.testing.assert_array_equal(found.products, exact.products)
        np.testing.assert_array_equal(found.columns, exact.columns)
        return
    assert not np.array_equal(found.products, exact.products)
    for weights in np.eye(4):
        spreads = []
        for total, squares in (exact.of_product(weights), found.of_product(weights)):
            assert abs(total / items) < 0.05
            spreads.append(np.sqrt(squares / items - (total / items) ** 2))
        assert spreads[1] == pytest.approx(spreads[0], rel=0.03)


def test_a_member_that_says_the_same_of_all_is_left_out() -> None:
    bundle = a_bundle(7)
    assert bundle.stream is not None
    blend = bundle.stream.snapshot.blend
    assert blend is not None
    flat = replace(blend, popularity=np.full(ITEMS, 3.5, dtype=np.float32))
    stream = Stream(bundle.stream.manifest, replace(bundle.stream.snapshot, blend=flat))
    found = blended(bundle, stream, flat, asked_of(bundle, np.array([1, 2])), None)
    assert "popularity" not in found.kinds
    assert "factors" in found.kinds
    np.testing.assert_allclose(
        found.at(np.arange(ITEMS)).scores,
        blended_slowly(replace(bundle, stream=stream), asked_of(bundle, np.array([1, 2])), None),
        rtol=1e-4,
        atol=1e-4,
    )
