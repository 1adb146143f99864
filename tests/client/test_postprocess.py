"""A node's whole update: bounded whatever it holds, and noised as said."""

import numpy as np
import pytest

from client.postprocess import add_noise, clip_whole


def norm(arrays: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.square(array).sum() for array in arrays.values())))


def update(scale: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: (scale * rng.standard_normal((3, 4))).astype(np.float32) for name in "ba"}


def test_a_large_update_is_scaled_to_the_bound_and_keeps_its_direction() -> None:
    clipped = clip_whole(update(5.0), 0.5)
    assert norm(clipped) == pytest.approx(0.5, rel=1e-12)
    np.testing.assert_allclose(clipped["a"] / clipped["b"], update(5.0)["a"] / update(5.0)["b"], rtol=1e-6)


def test_a_small_update_is_left_alone() -> None:
    clipped = clip_whole(update(1e-3), 0.5)
    np.testing.assert_array_equal(clipped["a"], update(1e-3)["a"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_says_nothing(value: float) -> None:
    spoiled = update(1.0)
    spoiled["a"][0, 0] = value
    assert norm(clip_whole(spoiled, 0.5)) == 0.0


def test_a_zero_update_stays_zero_and_integers_do_no_harm() -> None:
    assert norm(clip_whole({"a": np.zeros((2, 2), dtype=np.float32)}, 0.5)) == 0.0
    assert norm(clip_whole({"a": np.full((2, 2), 7)}, 0.5)) == pytest.approx(0.5)


def test_noise_has_its_deviation_and_repeats_by_seed() -> None:
    zeros = {"b": np.zeros((400, 400)), "a": np.zeros((10, 10))}
    noised = add_noise(zeros, 0.3, 1, "x")
    assert noised["b"].std() == pytest.approx(0.3, rel=0.01)  # six standard errors
    assert abs(noised["b"].mean()) < 0.005
    assert noised["b"].dtype == np.float32
    np.testing.assert_array_equal(noised["b"], add_noise(zeros, 0.3, 1, "x")["b"])
    assert not np.array_equal(noised["b"], add_noise(zeros, 0.3, 2, "x")["b"])


def test_no_deviation_adds_nothing() -> None:
    np.testing.assert_array_equal(add_noise(update(1.0), 0.0, 1)["a"], update(1.0)["a"])
