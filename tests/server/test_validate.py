"""What a client may send: every reason to refuse it, named."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from common.errors import UpdateRejected
from common.instructions import Objective, PrivacyTerms, TrainRequest
from common.privacy import PrivacySpend
from common.updates import AdapterUpdate, UpdateMeta
from server.validate import MAX_NORM, validate

LIKE = {"a": np.zeros((2, 3), dtype=np.float32), "b": np.zeros((3, 2), dtype=np.float32)}
TERMS = PrivacyTerms("user", 8.0, 1e-4, 0.2)
REQUEST = TrainRequest("run", 3, "base", "fedsvd", ("b",), "sha", 10, Objective(), TERMS)
SPEND = PrivacySpend("user", 1e-4, ((1.0, 0.2, 1),))
GOOD = AdapterUpdate(
    UpdateMeta("node-1", "base", "fedsvd", 3, 4.0, SPEND, 2.5), {"b": np.full((3, 2), 0.1, dtype=np.float32)}
)


def with_meta(**changes: object) -> AdapterUpdate:
    return replace(GOOD, meta=replace(GOOD.meta, **changes))  # type: ignore[arg-type]  # by name


def with_array(array: np.ndarray) -> AdapterUpdate:
    return replace(GOOD, arrays={"b": array})


def with_element(value: float) -> AdapterUpdate:
    array = GOOD.arrays["b"].copy()
    array[-1, -1] = value
    return with_array(array)


def test_an_honest_update_passes() -> None:
    validate(GOOD, REQUEST, LIKE)


def test_without_a_guarantee_no_claim_is_needed() -> None:
    off = replace(REQUEST, privacy=PrivacyTerms("off", float("inf"), 1e-4, 0.2))
    validate(with_meta(privacy=None, epsilon=None), off, LIKE)


REASONS: list[tuple[str, Callable[[], AdapterUpdate], str]] = [
    ("round", lambda: with_meta(round=2), "round 2; expected 3"),
    ("base version", lambda: with_meta(base_version="old"), "base version 'old'; expected 'base'"),
    ("strategy", lambda: with_meta(strategy="fedit"), "strategy 'fedit'; expected 'fedsvd'"),
    ("missing tensor", lambda: replace(GOOD, arrays={}), "tensor 'b' is in only one of update and request"),
    ("extra tensor", lambda: replace(GOOD, arrays={**GOOD.arrays, "a": LIKE["a"]}), "tensor 'a' is in only one"),
    ("shape", lambda: with_array(np.zeros((2, 3), dtype=np.float32)), "tensor 'b' is float32 (2, 3); expected float32"),
    ("rank", lambda: with_array(np.zeros(6, dtype=np.float32)), "tensor 'b' is float32 (6,)"),
    ("scalar", lambda: with_array(np.zeros((), dtype=np.float32)), "tensor 'b' is float32 ()"),
    ("double", lambda: with_array(np.zeros((3, 2))), "tensor 'b' is float64 (3, 2); expected float32 (3, 2)"),
    ("integers", lambda: with_array(np.zeros((3, 2), dtype=np.int32)), "tensor 'b' is int32"),
    ("complex", lambda: with_array(np.zeros((3, 2), dtype=np.complex64)), "tensor 'b' is complex64"),
    ("text", lambda: with_array(np.full((3, 2), "x")), "tensor 'b' is <U1"),
    ("bytes the other way round", lambda: with_array(np.zeros((3, 2), dtype=">f4")), "tensor 'b' is >f4"),
    ("NaN", lambda: with_element(np.nan), "tensor 'b' has NaN or infinite elements; expected finite numbers"),
    ("infinite", lambda: with_element(np.inf), "tensor 'b' has NaN or infinite elements"),
    ("minus infinite", lambda: with_element(-np.inf), "tensor 'b' has NaN or infinite elements"),
    ("norm", lambda: with_element(MAX_NORM * 1.01), "update of norm 1.01e+03; expected at most 1000"),
    ("overflowing norm", lambda: with_element(3e38), "update of norm 3e+38"),
    ("no claim", lambda: with_meta(privacy=None), "an update without a privacy claim; expected unit 'user'"),
    ("no epsilon", lambda: with_meta(epsilon=None), "an update without a privacy claim"),
    (
        "another unit",
        lambda: with_meta(privacy=replace(SPEND, unit="example")),
        "a claim of unit 'example' at delta 0.0001; expected 'user' at 0.0001",
    ),
    ("another delta", lambda: with_meta(privacy=replace(SPEND, delta=1e-2)), "a claim of unit 'user' at delta 0.01"),
    ("over budget", lambda: with_meta(epsilon=8.5), "a claimed epsilon of 8.5; expected above 0, at most 8"),
    ("nothing spent", lambda: with_meta(epsilon=0.0), "a claimed epsilon of 0"),
    ("less than nothing spent", lambda: with_meta(epsilon=-1.0), "a claimed epsilon of -1"),
    ("epsilon NaN", lambda: with_meta(epsilon=float("nan")), "a claimed epsilon of nan"),
    ("epsilon infinite", lambda: with_meta(epsilon=float("inf")), "a claimed epsilon of inf"),
]


@pytest.mark.parametrize(("make", "reason"), [case[1:] for case in REASONS], ids=[case[0] for case in REASONS])
def test_a_bad_update_is_refused_with_its_reason(make: Callable[[], AdapterUpdate], reason: str) -> None:
    with pytest.raises(UpdateRejected, match=re.escape(reason)) as caught:
        validate(make(), REQUEST, LIKE)
    assert "\n" not in str(caught.value)


def test_an_update_just_within_bounds_passes() -> None:
    array = np.zeros((3, 2), dtype=np.float32)
    array[0, 0] = MAX_NORM * 0.999
    validate(with_array(array), REQUEST, LIKE)
    validate(with_meta(epsilon=8.0), REQUEST, LIKE)


# -- smaller ranks ---------------------------------------------------------------------------------------------------

PAIR = {"q.lora_A.weight": np.zeros((4, 6), dtype=np.float32), "q.lora_B.weight": np.zeros((5, 4), dtype=np.float32)}
BOTH = replace(REQUEST, trained=tuple(PAIR), strategy="fedit")


def of_ranks(a: int, b: int) -> AdapterUpdate:
    arrays = {"q.lora_A.weight": np.ones((a, 6), np.float32), "q.lora_B.weight": np.ones((5, b), np.float32)}
    return AdapterUpdate(replace(GOOD.meta, strategy="fedit"), arrays)


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_a_whole_update_of_a_smaller_rank_passes(rank: int) -> None:
    validate(of_ranks(rank, rank), BOTH, PAIR, smaller_ranks=True)


@pytest.mark.parametrize(("a", "b"), [(5, 5), (2, 3), (4, 2), (0, 0), (2, 4)])
def test_a_larger_rank_none_or_two_at_once_are_refused(a: int, b: int) -> None:
    with pytest.raises(UpdateRejected, match=r"tensor 'q\.lora_"):
        validate(of_ranks(a, b), BOTH, PAIR, smaller_ranks=True)


def test_a_smaller_rank_with_another_width_is_refused() -> None:
    odd = of_ranks(2, 2)
    arrays = {**odd.arrays, "q.lora_A.weight": np.ones((2, 7), np.float32)}
    with pytest.raises(UpdateRejected, match=re.escape("float32 (2, 7); expected float32 (2, 6)")):
        validate(replace(odd, arrays=arrays), BOTH, PAIR, smaller_ranks=True)


@pytest.mark.parametrize("strategy", ["median", "trimmed-mean", "krum", "multi-krum"])
def test_rules_that_compare_ask_for_the_full_rank(strategy: str) -> None:
    update = replace(of_ranks(2, 2), meta=replace(GOOD.meta, strategy=strategy))
    with pytest.raises(UpdateRejected, match=re.escape("expected float32 (4, 6)")):
        validate(update, replace(BOTH, strategy=strategy), PAIR, smaller_ranks=True)


def test_where_updates_are_summed_the_full_rank_is_asked() -> None:
    terms = replace(TERMS, noise="server")
    with pytest.raises(UpdateRejected, match=re.escape("expected float32 (4, 6)")):
        validate(of_ranks(2, 2), replace(BOTH, privacy=terms, noise_multiplier=1.0), PAIR, smaller_ranks=True)


def test_a_server_that_does_not_ask_for_less_gets_no_less() -> None:
    with pytest.raises(UpdateRejected, match=re.escape("expected float32 (4, 6)")):
        validate(of_ranks(2, 2), BOTH, PAIR)
