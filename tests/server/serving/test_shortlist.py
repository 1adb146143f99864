"""The rows in 8 bits are off by no more than they say, and a shortlist misses none of the best."""

import numpy as np
import pytest

from common.ids import rng_for
from server.serving.coarse import LEAST_ROWS, CoarseRows, coarse_of
from server.serving.narrowing import best_of, in_whole_numbers, narrowed, whole_dot
from server.serving.shortlist import Product, QuickScores
from server.serving.sums import ItemSums
from tests.oracles.best import best_slowly

ITEMS, WIDTH = 1_500, 40


def some_rows(kind: str, seed: int, items: int = ITEMS) -> np.ndarray:
    """Return rows that are hard on 8 bits in one way or another."""
    rng = rng_for("shortlist", kind, seed)
    rows = rng.standard_normal((items, WIDTH))
    if kind == "outliers":  # one number far above the others of its row
        rows[np.arange(items), rng.integers(WIDTH, size=items)] *= 200.0
    elif kind == "sizes":  # rows of very different lengths, and some of none
        rows *= rng.choice([0.0, 1e-20, 1e-3, 1.0, 1e4], size=(items, 1))
    elif kind == "alike":  # hardly to be told apart
        rows = rows[:1] + 1e-4 * rows
    return rows.astype(np.float32)


KINDS = ("plain", "outliers", "sizes", "alike")


@pytest.mark.parametrize("kind", KINDS)
def test_a_coarse_product_is_off_by_no_more_than_it_says(kind: str) -> None:
    rows = some_rows(kind, 0)
    coarse = CoarseRows.of(rows)
    for seed in range(5):
        weights = rng_for("weights", seed).standard_normal(WIDTH).astype(np.float32) * np.float32(10.0 ** (seed - 2))
        whole, step, off, length = in_whole_numbers(weights)
        found = (coarse.codes.astype(np.int64) @ whole) * (coarse.scale.astype(np.float64) * step)
        bound = coarse.length * off + coarse.error * length
        expected = rows.astype(np.float64) @ weights.astype(np.float64)
        assert (np.abs(found - expected) <= bound).all()
        # and says something: without bounds that fit, all items would come into question
        assert np.median(bound) < 0.1 * np.median(np.linalg.norm(rows, axis=1)) * np.linalg.norm(weights)


@pytest.mark.parametrize("largest", [0.0, 1e-30, 1.0, 1e30])
def test_a_vector_in_whole_numbers_is_off_by_no_more_than_it_says(largest: float) -> None:
    weights = np.linspace(-largest, largest, WIDTH).astype(np.float32)
    whole, step, off, length = in_whole_numbers(weights)
    exact = weights.astype(np.float64)
    assert np.linalg.norm(exact - whole * np.float64(step)) <= off
    assert np.linalg.norm(exact) <= length


def test_products_of_whole_numbers_are_exact() -> None:
    # with the largest too: what is added up in 16 bits would overflow
    codes = np.resize(np.arange(-127, 128, dtype=np.int8), (WIDTH, 1_000)).copy()
    codes[0], codes[1] = 127, -127
    whole = codes[0].astype(np.int16)
    for row in codes:
        assert whole_dot(row, whole) == int(row.astype(np.int64) @ whole)


def some_scores(kind: str, seed: int, *, coarse: bool) -> QuickScores:
    """Return scores of two products, two columns, and what some items get on top."""
    rng = rng_for("scores", kind, seed)
    products = []
    for number in range(2):
        rows = some_rows(kind, seed + 10 * number)
        vector = rng.standard_normal(WIDTH).astype(np.float32)
        products.append(Product(rows, vector, CoarseRows.of(rows) if coarse else None))
    columns = tuple((rng.standard_normal(ITEMS).astype(np.float32), np.float32(factor)) for factor in (0.5, -2.0))
    loose = np.where(rng.random(ITEMS) < 0.1, rng.random(ITEMS), 0.0)
    extras = np.sort(rng.choice(ITEMS, 30, replace=False)), rng.standard_normal(30).astype(np.float32)
    return QuickScores(tuple(products), columns, ((loose, np.float32(3.0)),), (extras,))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [1.0, 0.5, 0.004])
def test_a_shortlist_misses_none_of_the_best(kind: str, share: float) -> None:
    for seed in range(4):
        scores = some_scores(kind, seed, coarse=True)
        eligible = rng_for("eligible", seed).random(ITEMS) < share
        exact = exactly(scores)
        for wanted in (1, 10, 100):
            found = scores.shortlist(eligible, wanted)
            assert (np.diff(found) > 0).all()
            assert eligible[found].all()
            # float32 decides between those that it can tell apart
            least = min((exact[row] for row in best_slowly(exact, eligible, wanted)), default=0.0)
            missed = np.setdiff1d(np.flatnonzero(eligible & (exact > least + 1e-5 * np.abs(exact).max())), found)
            assert not len(missed)
            assert len(found) >= min(wanted, eligible.sum())


def exactly(scores: QuickScores) -> np.ndarray:
    """Return the scores, float64, one after another."""
    exact = np.zeros(ITEMS)
    for each in scores.products:
        exact += each.rows.astype(np.float64) @ each.vector.astype(np.float64)
    for values, factor in (*scores.columns, *scores.loose):
        exact += values.astype(np.float64) * float(factor)
    for rows, amounts in scores.extras:
        exact[rows] += amounts
    return exact


def test_few_rows_are_read_where_the_coarse_ones_tell_them_apart() -> None:
    scores = some_scores("plain", 3, coarse=True)
    one, other = scores.products
    nothing = np.zeros(ITEMS, dtype=np.float32)
    possible = narrowed(nothing, np.ones(ITEMS, dtype=bool), 26, one.parts(), True, other.parts())
    assert 26 <= len(possible) < ITEMS // 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_of_many_are_the_first_ones_of_a_sorted_list(kind: str) -> None:
    rng = rng_for("best-of", kind)
    rows = np.flatnonzero(rng.random(ITEMS) < 0.5)
    # so coarse that many are equal
    values = np.round(some_rows(kind, 7)[rows, 0], 1)
    for k in (1, 2, 50, len(rows) - 1, len(rows), len(rows) + 1):
        found = best_of(values, rows, k)
        expected = best_slowly(values, np.ones(len(rows), dtype=bool), k)
        assert found.tolist() == sorted(rows[expected].tolist())


def test_without_coarse_rows_a_shortlist_is_the_same() -> None:
    eligible = np.ones(ITEMS, dtype=bool)
    for kind in ("plain", "outliers"):
        with_them, without = (some_scores(kind, 5, coarse=coarse) for coarse in (True, False))
        assert with_them.shortlist(eligible, 20).tolist() == without.shortlist(eligible, 20).tolist()


@pytest.mark.parametrize("shown", [1.0, 0.7, 0.0])
def test_the_spread_from_sums_is_that_of_the_scores(shown: float) -> None:
    scores = some_scores("plain", 6, coarse=False)
    product = scores.products[0]
    # with an item that gets something twice, once from each of two members
    again = np.array([3, int(scores.extras[0][0][0])])
    extras = (*scores.extras, (np.sort(again), np.array([1.5, -2.0], dtype=np.float32)))
    one = QuickScores((product,), scores.columns, scores.loose, extras)
    over = rng_for("over").random(ITEMS) < shown
    sums = ItemSums.of(product.rows, *(values for values, _ in scores.columns))
    expected = exactly(one)[over].std() if shown else 0.0
    assert one.spread(sums, over) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_few_rows_stay_as_they_are() -> None:
    assert coarse_of(some_rows("plain", 0, LEAST_ROWS - 1)) is None
    made = coarse_of(some_rows("plain", 0, LEAST_ROWS))
    assert made is not None
    again = CoarseRows.from_arrays(made.arrays())
    assert again is not None
    assert all(np.array_equal(array, again.arrays()[name]) for name, array in made.arrays().items())
    assert CoarseRows.from_arrays({}) is None
