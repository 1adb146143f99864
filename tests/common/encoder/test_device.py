"""Batches that fit the device's memory, and what may stay there."""

from pathlib import Path

import numpy as np
import pytest
import torch

from common.encoder import cache as caching
from common.encoder.adapter import TextEncoder
from common.encoder.cache import HiddenCache, encode_items, open_or_build
from common.encoder.device import Batches, has_room, repeatable
from common.encoder.spec import EncoderSpec
from common.errors import OutOfMemory
from tests.encoders import WORDS

CPU = torch.device("cpu")


class SmallMemory:
    """Work on numbers with memory for so many of them at once; it remembers what it was asked."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.asked: list[int] = []

    def __call__(self, batch: slice) -> list[int]:
        self.asked.append(batch.stop - batch.start)
        if self.asked[-1] > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. More words follow")
        return list(range(batch.start, batch.stop))


def test_what_fits_goes_through_in_order() -> None:
    work = SmallMemory(4)
    assert [*Batches(4, "numbers").over(10, work)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [*Batches(4, "numbers").over(0, work)] == []


def test_a_batch_that_does_not_fit_is_halved_once_and_said(caplog: pytest.LogCaptureFixture) -> None:
    work = SmallMemory(4)
    batches = Batches(8, "numbers")
    assert [*batches.over(11, work)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert [*batches.over(6, work)] == [[0, 1, 2, 3], [4, 5]]
    assert work.asked == [8, 4, 4, 3, 4, 2]
    assert [record.getMessage() for record in caplog.records] == ["no memory for 8 numbers at once; going on with 4"]


def test_half_a_batch_that_does_not_fit_is_an_error_that_says_what_to_do() -> None:
    work = SmallMemory(2)
    with pytest.raises(
        OutOfMemory, match=r"no memory for 4 numbers: CUDA out of memory; .*fewer --workers.*--device cpu"
    ):
        [*Batches(8, "numbers").over(8, work)]
    assert work.asked == [8, 4]


def test_one_alone_cannot_be_halved() -> None:
    with pytest.raises(OutOfMemory, match="no memory for 1 numbers"):
        [*Batches(8, "numbers").over(1, SmallMemory(0))]


def test_what_else_is_raised_passes() -> None:
    def broken(batch: slice) -> None:
        raise IndexError(batch)

    with pytest.raises(IndexError):
        [*Batches(8, "numbers").over(8, broken)]


def test_nothing_stays_on_a_processor_and_nothing_is_switched_there() -> None:
    assert not has_room(CPU, 0)
    with repeatable(CPU):
        assert not torch.are_deterministic_algorithms_enabled()


def test_sums_repeat_on_a_gpu_alone_and_only_inside() -> None:
    with repeatable(torch.device("cuda")):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_gpu_keeps_a_small_part_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1600, 99_999))
    assert has_room(torch.device("cuda"), 100)
    assert not has_room(torch.device("cuda"), 101)


def test_a_cache_on_the_device_gives_the_same(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TextEncoder.load(EncoderSpec.from_name(str(tiny_bert)))
    texts = [*WORDS[:9], "the brave hero of the river", ""]
    cache = open_or_build(tmp_path, encoder, texts)
    assert cache.on(CPU) is cache
    monkeypatch.setattr(caching, "has_room", lambda device, size: True)
    moved = cache.on(CPU)
    assert moved is not cache
    rows = np.array([9, 0, 9, 10])
    for found, expected in zip(moved.batch(rows, CPU), cache.batch(rows, CPU), strict=True):
        assert torch.equal(found, expected)
    np.testing.assert_array_equal(encode_items(encoder, moved), encode_items(encoder, cache))


def test_items_are_encoded_in_halves_where_they_do_not_fit(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = TextEncoder.load(EncoderSpec.from_name(str(tiny_bert)))
    texts = list(WORDS[:20])
    whole = encode_items(encoder, open_or_build(tmp_path / "whole", encoder, texts))
    upper, lower = TextEncoder.upper, TextEncoder.lower

    def small(run: object) -> object:
        def limited(self: TextEncoder, first: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            if len(first) > 10:
                raise torch.OutOfMemoryError("CUDA out of memory. ")
            found: torch.Tensor = run(self, first, mask)  # type: ignore[operator]  # one of the two methods
            return found

        return limited

    monkeypatch.setattr(TextEncoder, "upper", small(upper))
    monkeypatch.setattr(TextEncoder, "lower", small(lower))
    cache: HiddenCache = open_or_build(tmp_path / "parts", encoder, texts)
    for found in (encode_items(encoder, cache), encoder.encode(texts)):
        np.testing.assert_allclose(found, whole, rtol=0, atol=1e-5)
