"""Places packed and unpacked, bit for bit; and what a state of other settings is refused with."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import CheckpointMismatch
from stream.learner.packing import pack_ids, packed_places, unpack_ids, unpacked_places
from stream.learner.params import check_params, params_json


@given(rows=st.integers(0, 6), eights=st.integers(1, 4), share=st.floats(0, 1), seed=st.integers(0, 1_000))
def test_what_is_packed_comes_back_bit_for_bit(rows: int, eights: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    taken = rng.random((rows, 8 * eights)) < share
    key = np.where(taken, rng.integers(1, 2**31 - 1, taken.shape), 0).astype(np.int32)
    value = np.where(taken, rng.standard_normal(taken.shape), 0.0).astype(np.float32)
    value[rng.random(taken.shape) < 0.1] = 0.0  # a taken place may hold nothing
    packed = packed_places(key, value)
    np.testing.assert_array_equal(packed["filled"], np.packbits(taken, axis=1))
    np.testing.assert_array_equal(packed["keys"], key[taken])
    np.testing.assert_array_equal(packed["values"], value[taken])
    for found, original in zip(unpacked_places(**packed), (key, value), strict=True):
        assert found.dtype == original.dtype
        assert found.tobytes() == original.tobytes()
        assert found.shape == original.shape


@given(st.lists(st.text(max_size=5)))
def test_ids_are_packed_as_utf_8_end_to_end_and_come_back(ids: list[str]) -> None:
    ends, content = pack_ids(iter(ids))
    assert content.tobytes() == b"".join(text.encode() for text in ids)
    assert ends.tolist() == [len("".join(ids[: place + 1]).encode()) for place in range(len(ids))]
    assert ends.dtype == np.dtype(np.int64)
    assert unpack_ids(ends, content) == ids


def test_more_places_than_keys_are_refused() -> None:
    packed = packed_places(np.eye(8, dtype=np.int32), np.eye(8, dtype=np.float32))
    for name in ("keys", "values"):
        with pytest.raises(CheckpointMismatch, match="for 8 places"):
            unpacked_places(**{**packed, name: packed[name][1:]})


def test_the_settings_that_differ_are_named_and_no_others() -> None:
    mine = params_json("MF", {"seed": 1, "lr": 0.5, "window": 3})
    check_params(mine, mine)
    with pytest.raises(CheckpointMismatch) as caught:
        check_params(params_json("MF", {"seed": 2, "lr": 0.5, "older": True}), mine)
    text = str(caught.value)
    assert '"seed":2' in text
    assert '"seed":1' in text
    assert '"older":true' in text
    assert "lr" not in text


@pytest.mark.parametrize(("kind", "advice"), [("MF", "--learner mf"), ("Blend", "--learner blend"), ("Other", "")])
def test_another_kind_is_named_with_what_goes_on_with_it(kind: str, advice: str) -> None:
    with pytest.raises(CheckpointMismatch, match=f"kind '{kind}'; expected kind 'Mine'.*{advice}.*a new store"):
        check_params(params_json(kind, {"seed": 1}), params_json("Mine", {"seed": 1}))


@pytest.mark.parametrize("raw", [b"", b"nonsense", b"[1]"])
def test_what_are_no_settings_is_refused(raw: bytes) -> None:
    with pytest.raises(CheckpointMismatch, match="kind None"):
        check_params(raw, params_json("MF", {}))
