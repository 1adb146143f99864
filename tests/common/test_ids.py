"""Stable hashes: the same everywhere, for ever."""

import subprocess
import sys
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from common.ids import arrays_sha256, rng_for, stable_hash

parts = st.lists(st.text(max_size=10) | st.integers(), max_size=4)


def test_known_values_stay_as_they_are() -> None:
    # stored data depends on these: a change here is a change of every store
    assert stable_hash() == 13020603013274838756
    assert stable_hash("user", 7) == 14254023876974598120
    assert rng_for("a", 1).integers(0, 1 << 30, 3).tolist() == [39410332, 927543330, 428990536]


def test_another_process_with_another_hash_seed_agrees() -> None:
    program = "from common.ids import stable_hash; print(stable_hash('user', 'ü', 3))"
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        )
        assert int(done.stdout) == stable_hash("user", "ü", 3)


@given(parts)
def test_a_hash_is_an_unsigned_64_bit_number(values: list[str | int]) -> None:
    assert 0 <= stable_hash(*values) < 2**64


@given(st.text(min_size=1, max_size=10), st.text(min_size=1, max_size=10))
def test_parts_are_kept_apart(left: str, right: str) -> None:
    assert stable_hash(left, right) != stable_hash(left + right)
    assert stable_hash(left, right) != stable_hash(left, right, "")


def test_a_lone_surrogate_has_a_hash_too() -> None:
    assert stable_hash("\ud800") != stable_hash("\udc00")


def test_buckets_fill_evenly() -> None:
    counts = Counter(stable_hash("u", number) % 10 for number in range(20_000))
    # 2,000 expected, standard deviation 42
    assert all(1_800 < count < 2_200 for count in counts.values())


def test_a_generator_depends_on_its_parts_alone() -> None:
    assert rng_for("a", 1).random() == rng_for("a", 1).random()
    assert rng_for("a", 1).random() != rng_for("a", 2).random()


def test_the_hash_of_arrays_sees_name_type_shape_and_content_but_not_order() -> None:
    left, right = np.arange(6, dtype=np.float32), np.ones((2, 3), dtype=np.float32)
    base = arrays_sha256([("a", left), ("b", right)])
    assert arrays_sha256([("b", right), ("a", left)]) == base
    others: list[list[tuple[str, np.ndarray]]] = [
        [("a", left), ("c", right)],
        [("a", left.astype(np.float64)), ("b", right)],
        [("a", left.reshape(2, 3)), ("b", right)],
        [("a", left + 1), ("b", right)],
        [("a", left)],
    ]
    assert len({base, *(arrays_sha256(other) for other in others)}) == 1 + len(others)


def test_the_hash_of_arrays_does_not_see_memory_layout() -> None:
    square = np.arange(12.0).reshape(3, 4)
    assert arrays_sha256([("a", square)]) == arrays_sha256([("a", np.asfortranarray(square))])
    assert arrays_sha256([("a", square[:, ::2])]) == arrays_sha256([("a", square[:, ::2].copy())])
