"""Finding a BERT: what cannot be used is refused in one line, and nothing is made up."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from common.encoder.adapter import TextEncoder
from common.encoder.spec import EncoderSpec
from common.errors import EncoderError
from tests.encoders import save_tiny_bert


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_bert(tmp_path / "bert")


def build(folder: Path) -> TextEncoder:
    encoder = TextEncoder.load(EncoderSpec.from_name(str(folder)))
    assert encoder.sha256
    return encoder


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def with_cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def without_a_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["encoder.layer.1.attention.self.query.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def without_a_tokenizer(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()


def of_another_type(folder: Path) -> None:
    edit(folder, model_type="gpt2")


def with_more_words_than_rows(folder: Path) -> None:
    edit(folder, vocab_size=20)


def without_layers(folder: Path) -> None:
    edit(folder, num_hidden_layers=0)


def with_a_word_for_a_number(folder: Path) -> None:
    edit(folder, num_hidden_layers="three")


def with_a_list_for_a_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def without_a_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (without_weights, "cannot be loaded"),
        (with_cut_weights, "cannot be loaded"),
        (without_a_tensor, r"lack 'encoder\.layer\.1\.attention\.self\.query\.weight'"),
        (without_a_tokenizer, "tokenizer"),
        (with_more_words_than_rows, "cannot be loaded"),
        (of_another_type, "is of type 'gpt2'"),
        (without_layers, "with 0 layers"),
        (with_a_word_for_a_number, r"no readable config\.json"),
        (with_a_list_for_a_config, r"no readable config\.json"),
        (without_a_config, r"no readable config\.json"),
    ],
)
def test_a_damaged_folder_is_refused(folder: Path, damage: Callable[[Path], None], found: str) -> None:
    damage(folder)
    with pytest.raises(EncoderError, match=found) as caught:
        build(folder)
    assert "\n" not in str(caught.value)
    assert "to mend it" in str(caught.value)
    assert str(folder) in str(caught.value)


def test_an_unknown_name_says_what_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EncoderError, match=r"'no/such-bert' is no local folder.*leave out --encoder"):
        EncoderSpec.from_name("no/such-bert")


@pytest.mark.parametrize("name", ["", "../..//x", "a b c", "x" * 300])
def test_a_name_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EncoderError):
        EncoderSpec.from_name(name)


def test_the_hash_is_of_the_weights(folder: Path, tmp_path: Path) -> None:
    same, other = save_tiny_bert(tmp_path / "same"), save_tiny_bert(tmp_path / "other", seed=1)
    spec = EncoderSpec.from_name(str(folder))
    assert spec.weights_sha256() == EncoderSpec.from_name(str(same)).weights_sha256()
    assert spec.weights_sha256() != EncoderSpec.from_name(str(other)).weights_sha256()


def test_the_default_needs_no_network() -> None:
    spec = EncoderSpec.default()
    assert (spec.name, spec.trained_layers) == ("minilm", 1)
    assert Path(spec.path, "config.json").is_file()
