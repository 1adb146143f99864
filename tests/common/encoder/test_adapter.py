"""The encoder: the same vectors as the reference, whatever the way, and an adapter that fits or is refused."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.encoder.adapter import TextEncoder, initial_adapter
from common.encoder.cache import encode_items, open_or_build
from common.encoder.device import resolve_device
from common.encoder.spec import EncoderSpec
from common.errors import EncoderError, InvalidSetting, UnknownName
from common.ids import arrays_sha256, rng_for
from tests.encoders import WORDS, save_tiny_bert

SAMPLE = ["Toy Story (1995). Animation, Children, Comedy", "", "Ω ≈ 日本 🎬", "a", "word " * 10_000]
texts = st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join)


@pytest.fixture(scope="module")
def tiny(tiny_bert: Path) -> TextEncoder:
    return TextEncoder.load(EncoderSpec.from_name(str(tiny_bert)))


@pytest.fixture
def random_adapter(tiny: TextEncoder) -> Iterator[dict[str, np.ndarray]]:
    """Give an adapter with neither A nor B zero; the encoder starts again from none afterwards."""
    before = tiny.adapter()
    rng = rng_for("random-adapter")
    yield {name: rng.standard_normal(array.shape).astype(np.float32) * 0.3 for name, array in before.items()}
    tiny.set_adapter(before)


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    torch.set_num_threads(1)
    return TextEncoder.load(EncoderSpec.default())


# -- vectors ---------------------------------------------------------------------------------------------------------


def test_vectors_equal_those_of_sentence_transformers(minilm: TextEncoder) -> None:
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(minilm.spec.path, device="cpu")
    reference.max_seq_length = minilm.max_tokens
    expected = reference.encode(SAMPLE, normalize_embeddings=True, show_progress_bar=False)
    np.testing.assert_allclose(minilm.encode(SAMPLE), expected, rtol=0, atol=1e-5)


def test_the_cached_way_equals_the_uncached_one(tiny: TextEncoder, tmp_path: Path) -> None:
    cache = open_or_build(tmp_path, tiny, SAMPLE)
    np.testing.assert_allclose(encode_items(tiny, cache), tiny.encode(SAMPLE), rtol=0, atol=1e-5)


def test_the_cached_way_equals_the_uncached_one_with_an_adapter(
    tiny: TextEncoder, random_adapter: dict[str, np.ndarray], tmp_path: Path
) -> None:
    cache = open_or_build(tmp_path, tiny, SAMPLE)  # before the adapter: what is cached does not depend on it
    plain = tiny.encode(SAMPLE)
    tiny.set_adapter(random_adapter)
    np.testing.assert_allclose(encode_items(tiny, cache), tiny.encode(SAMPLE), rtol=0, atol=1e-5)
    assert np.abs(tiny.encode(SAMPLE) - plain).max() > 0.01


@settings(max_examples=25)
@given(st.lists(texts, min_size=1, max_size=8), st.integers(0, 2**32))
def test_neither_padding_nor_order_matters(tiny: TextEncoder, batch: list[str], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(batch))
    together = tiny.encode([batch[i] for i in order])
    alone = np.concatenate([tiny.encode([batch[i]]) for i in order])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)


def test_vectors_have_length_one(tiny: TextEncoder) -> None:
    np.testing.assert_allclose(np.linalg.norm(tiny.encode(SAMPLE), axis=1), 1.0, atol=1e-5)


def test_no_texts_give_no_vectors(tiny: TextEncoder) -> None:
    assert tiny.encode([]).shape == (0, 32)


def test_a_long_text_is_cut(tiny: TextEncoder) -> None:
    (ids,) = tiny.tokenize(["river " * 10_000])
    assert len(ids) == tiny.spec.max_tokens


def test_a_model_with_few_positions_cuts_earlier(tmp_path: Path) -> None:
    short = TextEncoder.load(EncoderSpec.from_name(str(save_tiny_bert(tmp_path / "short", positions=16))))
    assert len(short.tokenize(["river " * 100])[0]) == 16
    assert np.isfinite(short.encode(["river " * 100])).all()


def test_a_bert_of_one_layer_trains_that_one(tmp_path: Path) -> None:
    one = TextEncoder.load(EncoderSpec.from_name(str(save_tiny_bert(tmp_path / "one", layers=1))))
    assert one.first_trained == 0
    cache = open_or_build(tmp_path / "cache", one, SAMPLE)
    np.testing.assert_allclose(encode_items(one, cache), one.encode(SAMPLE), rtol=0, atol=1e-5)


def test_loading_says_nothing(tiny_bert: Path, capfd: pytest.CaptureFixture[str]) -> None:
    TextEncoder.load(EncoderSpec.from_name(str(tiny_bert)))
    TextEncoder.load(EncoderSpec.default())  # its pooling layer is left out, of which transformers makes a table
    assert capfd.readouterr() == ("", "")


# -- the adapter -----------------------------------------------------------------------------------------------------


def test_an_adapter_comes_back_as_it_was_set(tiny: TextEncoder, random_adapter: dict[str, np.ndarray]) -> None:
    tiny.set_adapter(random_adapter)
    assert arrays_sha256(tiny.adapter().items()) == arrays_sha256(random_adapter.items())


def test_a_missing_tensor_is_refused_by_name(tiny: TextEncoder, random_adapter: dict[str, np.ndarray]) -> None:
    name = min(random_adapter)
    del random_adapter[name]
    with pytest.raises(EncoderError, match=re.escape(f"tensor {name!r} is in only one of model and adapter")):
        tiny.set_adapter(random_adapter)


def test_an_unknown_tensor_is_refused_by_name(tiny: TextEncoder, random_adapter: dict[str, np.ndarray]) -> None:
    with pytest.raises(EncoderError, match="tensor 'zzz' is in only one of model and adapter"):
        tiny.set_adapter({**random_adapter, "zzz": np.zeros(1, dtype=np.float32)})


def test_a_changed_shape_is_refused_by_name(tiny: TextEncoder, random_adapter: dict[str, np.ndarray]) -> None:
    before = arrays_sha256(tiny.adapter().items())
    name = max(random_adapter)
    wrong = {**random_adapter, name: random_adapter[name].T}
    with pytest.raises(EncoderError, match=re.escape(f"tensor {name!r} has shape (16, 32); expected (32, 16)")):
        tiny.set_adapter(wrong)
    assert arrays_sha256(tiny.adapter().items()) == before


@pytest.mark.parametrize("part", ["lora_B", "lora_A", "layer.2"])
def test_exactly_the_named_tensors_are_trained(
    tiny: TextEncoder, random_adapter: dict[str, np.ndarray], part: str
) -> None:
    tiny.set_adapter(random_adapter)
    names = [name for name in random_adapter if part in name]
    frozen = {name: tensor.clone() for name, tensor in tiny.bert.state_dict().items() if "lora" not in name}
    parameters = tiny.trainable(names)
    assert list(parameters) == sorted(names)
    ids, mask = torch.tensor([tiny.tokenize(["the brave hero"])[0]]), torch.ones(1, 5, dtype=torch.bool)
    step = torch.optim.SGD([p for p in tiny.peft.parameters() if p.requires_grad], lr=1.0)
    tiny.upper(tiny.lower(ids, mask), mask).square().mul(torch.arange(32)).sum().backward()  # type: ignore[no-untyped-call]  # untyped in torch
    step.step()
    moved = {name for name, array in tiny.adapter().items() if np.abs(array - random_adapter[name]).max() > 0}
    assert moved == set(names)
    for name, tensor in frozen.items():
        assert torch.equal(tiny.bert.state_dict()[name], tensor), name


def test_only_trained_modules_leave_evaluation_mode(tiny: TextEncoder) -> None:
    tiny.trainable([name for name in tiny.adapter() if "lora_B" in name])
    training = {type(module).__name__ for module in tiny.modules() if module.training}
    assert training == {"Linear"}  # no dropout, no layer norm


def test_training_an_unknown_tensor_is_refused_by_name(tiny: TextEncoder) -> None:
    with pytest.raises(EncoderError, match="no tensor 'lora_C' in the adapter"):
        tiny.trainable(["lora_C"])


def test_the_first_adapter_changes_no_vector(tiny: TextEncoder, random_adapter: dict[str, np.ndarray]) -> None:
    plain = tiny.encode(SAMPLE)
    tiny.set_adapter(initial_adapter({name: array.shape for name, array in random_adapter.items()}, seed=3))
    np.testing.assert_array_equal(tiny.encode(SAMPLE), plain)


def test_the_first_adapter_is_orthonormal_and_fixed_by_its_seed() -> None:
    shapes = {"x.lora_A.weight": (4, 32), "x.lora_B.weight": (32, 4)}
    first, again, other = initial_adapter(shapes, 1), initial_adapter(shapes, 1), initial_adapter(shapes, 2)
    a = first["x.lora_A.weight"]
    np.testing.assert_allclose(a @ a.T, np.eye(4), atol=1e-6)
    assert not first["x.lora_B.weight"].any()
    assert arrays_sha256(first.items()) == arrays_sha256(again.items())
    assert arrays_sha256(first.items()) != arrays_sha256(other.items())


# -- devices ---------------------------------------------------------------------------------------------------------


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(UnknownName, match="unknown device 'tpu'"):
        resolve_device("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"device 'cuda' is not here.*--device auto"):
        resolve_device("cuda")
    assert resolve_device("auto").type in ("cpu", "mps")
