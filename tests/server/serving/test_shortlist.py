"""The rows in 8 bits are off by no more than they say, and a shortlist misses none of the best."""

import numpy as np
import pytest

from common.ids import rng_for
from server.serving import shortlist
from server.serving.coarse import LEAST_ROWS, CoarseRows, coarse_of, integer_product, pays
from server.serving.shortlist import Product, QuickScores
from server.serving.sums import ItemSums
from tests.oracles.best import best_slowly

ITEMS, WIDTH = 1_500, 40
in_8_bits = pytest.mark.skipif(integer_product() is None, reason="torch multiplies no whole numbers here")


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


@in_8_bits
@pytest.mark.parametrize("kind", KINDS)
def test_a_coarse_product_is_off_by_no_more_than_it_says(kind: str) -> None:
    rows = some_rows(kind, 0)
    for seed in range(5):
        weights = rng_for("weights", seed).standard_normal(WIDTH).astype(np.float32) * np.float32(10.0 ** (seed - 2))
        found, bounds = CoarseRows.of(rows).product(weights)
        bound = bounds.at(np.arange(ITEMS))
        expected = rows.astype(np.float64) @ weights.astype(np.float64)
        assert (np.abs(found - expected) <= bound).all()
        assert (bound <= bounds.most * (1 + 1e-6)).all()
    # and says something: without bounds that fit, all items would come into question
    assert np.median(bound) < 0.1 * np.median(np.linalg.norm(rows, axis=1)) * np.linalg.norm(weights)


@in_8_bits
def test_a_coarse_product_with_nothing_is_nothing() -> None:
    found, bounds = CoarseRows.of(some_rows("plain", 1)).product(np.zeros(WIDTH, dtype=np.float32))
    assert not found.any()
    assert bounds.most == 0.0


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


@in_8_bits
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [1.0, 0.5, 0.004])
def test_a_shortlist_misses_none_of_the_best(kind: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortlist, "pays", lambda: True)
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


@in_8_bits
def test_few_rows_are_read_where_the_coarse_ones_tell_them_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortlist, "pays", lambda: True)
    scores = some_scores("plain", 3, coarse=True)
    asked: list[int] = []
    whole = shortlist.best

    def best(values: np.ndarray, eligible: np.ndarray, k: int) -> np.ndarray:
        asked.append(len(values))
        return whole(values, eligible, k)

    monkeypatch.setattr(shortlist, "best", best)
    scores.shortlist(np.ones(ITEMS, dtype=bool), 10)
    assert len(asked) == 2
    assert 10 <= asked[1] < ITEMS // 4


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


def test_whether_it_pays_is_known_once() -> None:
    assert pays() == pays()
