"""The encoder of questions gives the library's vectors, whatever the adapter, or leaves the work to the library."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from common.encoder import dense
from common.encoder.adapter import TextEncoder
from common.encoder.plain import PlainBert
from common.encoder.queries import PlainEncoder, load_for_queries
from common.encoder.spec import EncoderSpec
from common.errors import EncoderError
from common.ids import rng_for
from tests.encoders import WORDS, save_tiny_bert

SAMPLE = ["the brave hero of the dark city", "", "Ω ≈ 日本 🎬", "a", "river " * 10_000, "star war"]
WITHIN = 1e-5
batches = st.lists(st.lists(st.sampled_from(WORDS), max_size=70).map(" ".join), min_size=1, max_size=6)


def plain(spec: EncoderSpec) -> PlainEncoder:
    encoder = load_for_queries(spec)
    assert isinstance(encoder, PlainEncoder)
    return encoder


def an_adapter(encoder: TextEncoder, size: float = 0.3) -> dict[str, np.ndarray]:
    """Return an adapter with neither A nor B zero."""
    return {
        name: (size * rng_for("questions", name).standard_normal(array.shape)).astype(np.float32)
        for name, array in encoder.adapter().items()
    }


def assert_alike(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=WITHIN)
    np.testing.assert_allclose((found * expected).sum(1), 1.0, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def both(tiny_bert: Path) -> tuple[PlainEncoder, TextEncoder]:
    """Give the two encoders of one BERT with one adapter, which changes the vectors."""
    spec = EncoderSpec.from_name(str(tiny_bert))
    ours, library = plain(spec), TextEncoder.load(spec)
    assert_alike(ours.encode(SAMPLE), library.encode(SAMPLE))  # without an adapter
    before = library.encode(SAMPLE)
    for encoder in (ours, library):
        encoder.set_adapter(an_adapter(library))
    assert np.abs(library.encode(SAMPLE) - before).max() > 0.01
    return ours, library


# -- vectors ---------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(batches)
def test_vectors_are_those_of_the_library(both: tuple[PlainEncoder, TextEncoder], texts: list[str]) -> None:
    ours, library = both
    assert_alike(ours.encode(texts), library.encode(texts))


def test_vectors_are_those_of_the_library_one_text_at_a_time(both: tuple[PlainEncoder, TextEncoder]) -> None:
    ours, library = both
    for length in (*range(12), 33, 61, 62, 63, 200):
        text = " ".join(WORDS[row % len(WORDS)] for row in range(length))
        assert_alike(ours.encode([text]), library.encode([text]))


def test_no_texts_give_no_vectors(both: tuple[PlainEncoder, TextEncoder]) -> None:
    assert both[0].encode([]).shape == (0, 32)


def test_the_default_encoder_is_plain_and_equals_the_library() -> None:
    spec = EncoderSpec.default()
    ours, library = plain(spec), TextEncoder.load(spec)
    for encoder in (ours, library):
        encoder.set_adapter(an_adapter(library, 0.02))
    assert_alike(ours.encode(SAMPLE), library.encode(SAMPLE))
    for text in SAMPLE:
        assert_alike(ours.encode([text]), library.encode([text]))
    assert ours.sha256 == library.sha256


@pytest.mark.parametrize(
    "changes",
    [
        {"targets": ("query", "value"), "trained_layers": 2, "rank": 4},
        {"targets": ("key",), "alpha": 7},
        {"targets": ("attention.output.dense",)},
        {"targets": ("self.query", "output.dense"), "trained_layers": 3, "rank": 2},
        {"max_tokens": 5},
    ],
)
def test_any_adapter_is_added_as_the_library_does(tiny_bert: Path, changes: dict[str, object]) -> None:
    spec = replace(EncoderSpec.from_name(str(tiny_bert)), **changes)  # type: ignore[arg-type]  # of several types
    ours, library = plain(spec), TextEncoder.load(spec)
    for encoder in (ours, library):
        encoder.set_adapter(an_adapter(library))
    assert_alike(ours.encode(SAMPLE), library.encode(SAMPLE))


def test_a_bert_with_few_positions_or_one_layer(tmp_path: Path) -> None:
    for name, numbers in (("short", {"positions": 16}), ("one", {"layers": 1})):
        spec = EncoderSpec.from_name(str(save_tiny_bert(tmp_path / name, **numbers)))
        ours, library = plain(spec), TextEncoder.load(spec)
        for encoder in (ours, library):
            encoder.set_adapter(an_adapter(library))
        assert_alike(ours.encode(SAMPLE), library.encode(SAMPLE))


# -- adapters --------------------------------------------------------------------------------------------------------


def test_an_adapter_leaves_nothing_behind(tiny_bert: Path, both: tuple[PlainEncoder, TextEncoder]) -> None:
    ours, adapter = plain(EncoderSpec.from_name(str(tiny_bert))), an_adapter(both[1])
    without = ours.encode(SAMPLE)
    ours.set_adapter(adapter)
    adapted = ours.encode(SAMPLE)
    np.testing.assert_array_equal(adapted, both[0].encode(SAMPLE))
    ours.set_adapter({name: array * ("lora_A" in name) for name, array in adapter.items()})
    np.testing.assert_array_equal(ours.encode(SAMPLE), without)
    for array in adapter.values():
        array[:] = 9.0  # it was copied
    np.testing.assert_array_equal(ours.encode(SAMPLE), without)


def without_one(arrays: dict[str, np.ndarray]) -> None:
    del arrays[min(arrays)]


def with_one_more(arrays: dict[str, np.ndarray]) -> None:
    arrays["zzz"] = np.zeros(1, dtype=np.float32)


def with_another_shape(arrays: dict[str, np.ndarray]) -> None:
    arrays[max(arrays)] = arrays[max(arrays)].T


@pytest.mark.parametrize("spoil", [without_one, with_one_more, with_another_shape])
def test_an_adapter_that_does_not_fit_is_refused_as_by_the_library(
    both: tuple[PlainEncoder, TextEncoder], spoil: Callable[[dict[str, np.ndarray]], None]
) -> None:
    ours, library = both
    before, arrays = ours.encode(SAMPLE), an_adapter(library)
    spoil(arrays)
    with pytest.raises(EncoderError) as expected:
        library.set_adapter(arrays)
    with pytest.raises(EncoderError, match=re.escape(str(expected.value))):
        ours.set_adapter(arrays)
    np.testing.assert_array_equal(ours.encode(SAMPLE), before)


# -- what only the library can read ----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_bert(tmp_path / "bert")


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def save_again(folder: Path, change: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]]) -> None:
    path = folder / "model.safetensors"
    saved = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(dict(change(name, tensor) for name, tensor in saved.items()), path, metadata={"format": "pt"})


def test_another_activation_is_left_to_the_library(folder: Path) -> None:
    edit(folder, hidden_act="relu")
    assert isinstance(load_for_queries(EncoderSpec.from_name(str(folder))), TextEncoder)


def test_an_adapter_before_the_activation_is_left_to_the_library(tiny_bert: Path) -> None:
    spec = EncoderSpec.from_name(str(tiny_bert))
    for targets in (("dense",), ("query", "intermediate.dense")):
        assert isinstance(load_for_queries(replace(spec, targets=targets)), TextEncoder)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda name, tensor: (f"bert.{name}", tensor), id="saved with a head"),
        pytest.param(
            lambda name, tensor: (
                re.sub("Norm.weight$", "Norm.gamma", re.sub("Norm.bias$", "Norm.beta", name)),
                tensor,
            ),
            id="as the first BERT was",
        ),
        pytest.param(lambda name, tensor: (name, tensor.half()), id="in half the precision"),
    ],
)
def test_weights_saved_otherwise_give_the_vectors_of_the_library(
    folder: Path, change: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]]
) -> None:
    save_again(folder, change)
    spec = EncoderSpec.from_name(str(folder))
    assert_alike(plain(spec).encode(SAMPLE), TextEncoder.load(spec).encode(SAMPLE))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(b"none"),
        lambda folder: (folder / "vocab.txt").unlink() or (folder / "tokenizer.json").unlink(),
        lambda folder: edit(folder, vocab_size=20),
        lambda folder: save_again(folder, lambda name, tensor: (name.replace("layer.1", "layer.9"), tensor)),
    ],
    ids=["weights", "tokenizer", "words", "a layer"],
)
def test_what_cannot_be_read_is_refused_as_by_the_library(folder: Path, spoil: Callable[[Path], object]) -> None:
    spoil(folder)
    spec = EncoderSpec.from_name(str(folder))
    with pytest.raises(EncoderError) as expected:
        TextEncoder.load(spec)
    with pytest.raises(EncoderError, match=re.escape(str(expected.value))):
        load_for_queries(spec)


def test_a_device_of_its_own_is_left_to_the_library(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("common.encoder.queries.resolve_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(TextEncoder, "load", lambda spec, device: asked.append(device))
    load_for_queries(EncoderSpec.from_name(str(tiny_bert)), "auto")
    assert asked == ["auto"]


def test_questions_need_neither_peft_nor_the_models_of_transformers() -> None:
    code = (
        "import sys\n"
        "from common.encoder.queries import load_for_queries\n"
        "from common.encoder.spec import EncoderSpec\n"
        "assert load_for_queries(EncoderSpec.default()).encode(['a film']).shape == (1, 384)\n"
        "print([name for name in ('peft', 'transformers.modeling_utils', 'tokenizers') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "['tokenizers']\n"


# -- the products ----------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.integers(1, 300), st.booleans(), st.integers(0, 2**32))
def test_a_laid_out_matrix_gives_the_product_of_any_number_of_rows(rows: int, gelu: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight, bias, of = (torch.from_numpy(rng.standard_normal(shape)) for shape in ((48, 32), (48,), (rows, 32)))
    expected = of @ weight.T + bias
    if gelu:
        expected = expected * (1 + torch.erf(expected / 2**0.5)) / 2
    found = dense.dense(weight.float(), bias.float(), gelu=gelu)(of.float())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=WITHIN)


@given(st.integers(0, 5_000))
def test_rows_are_multiplied_in_few_numbers(rows: int) -> None:
    sizes = dense.cuts(rows)
    assert sum(sizes) == rows
    assert set(sizes) <= set(dense.SIZES)


def test_without_onednn_the_vectors_are_the_same(
    both: tuple[PlainEncoder, TextEncoder], tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "lays_out", lambda: False)
    read = PlainBert.read(tiny_bert)
    assert read is not None
    ours = PlainEncoder(EncoderSpec.from_name(str(tiny_bert)), read)
    ours.set_adapter(an_adapter(both[1]))
    assert_alike(ours.encode(SAMPLE), both[1].encode(SAMPLE))
