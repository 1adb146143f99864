"""The cache of hidden states: built once, shared, and refused when it is damaged."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.encoder.adapter import TextEncoder
from common.encoder.cache import HiddenCache, open_or_build
from common.encoder.spec import EncoderSpec
from common.encoder.texts import pad_tokens
from common.errors import ArtifactCorrupt
from common.store import pack_arrays
from tests.encoders import WORDS

TEXTS = ["the brave hero", "", "a", "old river town at night in winter", "x" * 3000]


@pytest.fixture(scope="module")
def tiny(tiny_bert: Path) -> TextEncoder:
    return TextEncoder.load(EncoderSpec.from_name(str(tiny_bert)))


@pytest.fixture(scope="module")
def cache(tiny: TextEncoder, tmp_path_factory: pytest.TempPathFactory) -> HiddenCache:
    return open_or_build(tmp_path_factory.mktemp("cache"), tiny, TEXTS)


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_it_is_built_once(tiny: TextEncoder, tmp_path: Path) -> None:
    told: list[int] = []
    open_or_build(tmp_path, tiny, TEXTS, lambda stage, done, total: told.append(done))
    written = only_file(tmp_path).stat().st_mtime_ns
    assert told[-1] == len(TEXTS)
    told.clear()
    open_or_build(tmp_path, tiny, TEXTS, lambda stage, done, total: told.append(done))
    assert told == []
    assert only_file(tmp_path).stat().st_mtime_ns == written


def test_other_texts_are_another_file(tiny: TextEncoder, tmp_path: Path) -> None:
    for texts in (TEXTS, TEXTS[::-1], TEXTS[:-1], [*TEXTS[:1], TEXTS[1] + TEXTS[2], *TEXTS[3:]]):
        open_or_build(tmp_path, tiny, texts)
    assert len(list(tmp_path.iterdir())) == 4


def test_another_split_is_another_file(tiny: TextEncoder, tiny_bert: Path, tmp_path: Path) -> None:
    spec = EncoderSpec(name=str(tiny_bert), path=str(tiny_bert), trained_layers=2)
    open_or_build(tmp_path, tiny, TEXTS)
    open_or_build(tmp_path, TextEncoder.load(spec), TEXTS)
    assert len(list(tmp_path.iterdir())) == 2


def test_two_openings_share_their_pages(tiny: TextEncoder, tmp_path: Path) -> None:
    opened = [open_or_build(tmp_path, tiny, TEXTS) for _ in range(2)]
    name = only_file(tmp_path).name
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(name)]
    assert mapped
    assert len(opened) == 2


@given(st.lists(st.integers(0, len(TEXTS) - 1), min_size=1, max_size=12))
def test_a_batch_is_what_the_layers_give(tiny: TextEncoder, cache: HiddenCache, rows: list[int]) -> None:
    hidden, mask = cache.batch(np.array(rows), torch.device("cpu"))
    ids, expected_mask = pad_tokens([tiny.tokenize(TEXTS)[row] for row in rows], torch.device("cpu"))
    with torch.no_grad():
        expected = tiny.lower(ids, expected_mask)
    assert torch.equal(mask, expected_mask)
    np.testing.assert_allclose(hidden[mask].numpy(), expected[mask].numpy(), rtol=0, atol=1e-5)


@given(st.data())
def test_a_damaged_byte_is_found(tiny: TextEncoder, data: st.DataObject) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        open_or_build(Path(name), tiny, TEXTS[:2])
        path = only_file(Path(name))
        raw = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(raw)
        try:
            opened = open_or_build(Path(name), tiny, TEXTS[:2])
        except ArtifactCorrupt as error:
            assert "delete it; it is made again" in str(error)  # noqa: PT017  either outcome may be right
        else:  # a blank in the header says nothing
            assert at < 400
            np.testing.assert_array_equal(opened.lengths, [5, 2])


@pytest.mark.parametrize("content", [b"", b"not a cache", pack_arrays({"hidden": np.zeros((1, 2), dtype=np.float32)})])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hidden-x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ArtifactCorrupt, match="is not a cache of hidden states; to mend it: delete it"):
        HiddenCache.open(path)


def test_words_of_the_test_vocabulary_are_whole_tokens(tiny: TextEncoder) -> None:
    assert all(len(ids) == 3 for ids in tiny.tokenize(WORDS))
