"""A version outside of its store: PEFT loads it, its card tells the truth, another store holds the same."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

from common.encoder.adapter import TextEncoder, initial_adapter
from common.encoder.cache import encode_items, open_or_build
from common.encoder.card import hub_name
from common.encoder.spec import EncoderSpec
from common.errors import ArtifactCorrupt, InvalidSetting, StoreMismatch, VersionExists
from common.ids import rng_for
from common.instructions import Objective, PrivacyTerms
from common.items import Catalogue, Item
from common.privacy import PrivacyClaim
from common.store import verify_folder
from server.evaluate import Quality, build_test
from server.export import copy_version, export
from server.registry import CURRENT, Registry
from server.release import Publisher
from server.rounds import RunPlan, RunState
from server.store_info import StoreInfo
from tests.encoders import WORDS
from tests.server.serving.stores import new_store, publish

ITEMS = 12


@pytest.fixture(scope="module")
def trained(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Give a store with one version of a tiny BERT, published by the real publisher."""
    folder = tmp_path_factory.mktemp("trained")
    encoder = TextEncoder.load(EncoderSpec.from_name(str(tiny_bert)))
    texts = [" ".join(WORDS[row : row + 1 + row % 5]) for row in range(ITEMS)]
    info = StoreInfo(encoder.spec.name, encoder.sha256, "films", 1)
    registry = Registry.create(folder / "store", info, Catalogue(Item(f"i{n}", t, t) for n, t in enumerate(texts)))
    draw = rng_for("export", 0)
    adapter = initial_adapter({name: array.shape for name, array in encoder.adapter().items()}, 0)
    for name, array in adapter.items():
        # B is zero at first: then any adapter would do
        adapter[name] = array + draw.normal(0.0, 0.3, array.shape).astype(np.float32)
    clicks = [(f"u{user}", (user + step) % ITEMS) for user in range(6) for step in range(4)]
    controls = {"popularity": Quality(0.5, 0.25, (0.4, 0.6), 12, 0.125)}
    plan = RunPlan("run", 0, 9, 1, "fedsvd", 0.01, encoder.sha256, Objective(), PrivacyTerms("off"))
    cache = open_or_build(folder / "cache", encoder, texts)
    events = build_test(clicks[:12], clicks[12:], ITEMS)
    Publisher(registry, encoder, cache, events, controls, plan, lambda: 7).publish(RunState(1, adapter, {}))
    assert encode_items(encoder, cache).shape == (ITEMS, 32)
    return registry


def python_of(card: str, base: Path, adapter: Path) -> dict[str, Any]:
    """Run the card's own lines, with folders of this machine for the names."""
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    lines = re.sub(r"^base, adapter = .*$", f'base, adapter = "{base}", "{adapter}"', code[1], flags=re.MULTILINE)
    space: dict[str, Any] = {}
    exec(lines, space)  # noqa: S102 - what a reader of the card would type
    return space


def test_peft_loads_the_folder_and_finds_the_same_vectors(trained: Registry, tiny_bert: Path, tmp_path: Path) -> None:
    manifest = export(trained, CURRENT, tmp_path / "adapter", "Free to use.")
    assert verify_folder(tmp_path / "adapter") == manifest
    card = (tmp_path / "adapter" / "README.md").read_text()
    space = python_of(card, tiny_bert, tmp_path / "adapter")
    found = space["encode"](list(trained.catalogue.texts)).numpy()
    expected = trained.arrays(CURRENT, "item_vectors.safetensors")["item_vectors"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    space["model"].disable_adapter_layers()
    assert np.abs(space["encode"](list(trained.catalogue.texts)).numpy() - expected).max() > 1e-2


def test_the_card_says_what_the_manifest_says(trained: Registry, tmp_path: Path) -> None:
    export(trained, CURRENT, tmp_path / "adapter", "Free to use.")
    text = (tmp_path / "adapter" / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["library_name"] == "peft"
    assert "base_model" not in head, "a folder of this machine is nobody's base model"
    data = ModelCard(text).data
    assert isinstance(data, ModelCardData)
    results = data.eval_results
    assert results is not None
    metrics = trained.current().metrics
    assert {result.metric_type: result.metric_value for result in results} == {
        name: pytest.approx(metrics["global"][name]) for name in ("recall@10", "ndcg@10", "mrr@10")
    }
    assert "No differential privacy is claimed" in text
    assert "Trained on `films`. Free to use." in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows] == ["| row", "| popularity", "| **this adapter**"]
    assert "| 0.5000 | 0.2500 | 0.1250 | 0.4000 to 0.6000 |" in rows[1]
    for file in (tmp_path / "adapter").iterdir():
        assert str(Path(trained.info.encoder).parent).encode() not in file.read_bytes(), file


def test_a_claim_is_in_the_card(trained: Registry, tmp_path: Path) -> None:
    claim = PrivacyClaim("user", 7.984, 1e-4, 8.0, "prv")
    files = {name: trained.read(CURRENT, name) for name in trained.current().files}
    trained.publish(files, replace(trained.current(), version="private", privacy=claim, base_encoder="minilm"))
    export(trained, "private", tmp_path / "adapter", "")
    text = (tmp_path / "adapter" / "README.md").read_text()
    assert "per **user**: epsilon **7.984** at delta 0.0001" in text
    assert yaml.safe_load(text.split("---\n")[1])["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"


def test_a_folder_that_is_there_and_a_damaged_version_are_refused(tmp_path: Path) -> None:
    registry = new_store(tmp_path / "store")
    publish(registry, "v000001")
    (tmp_path / "adapter").mkdir()
    with pytest.raises(InvalidSetting, match="is there already"):
        export(registry, CURRENT, tmp_path / "adapter", "")
    path = registry.folder(CURRENT) / "item_vectors.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactCorrupt, match="SHA-256"):
        export(registry, CURRENT, tmp_path / "other", "")
    with pytest.raises(ArtifactCorrupt, match="SHA-256"):
        copy_version(registry, CURRENT, tmp_path / "other")
    assert sorted(child.name for child in tmp_path.iterdir()) == ["adapter", "store"]


def test_a_copy_in_another_store_is_the_same_version(tmp_path: Path) -> None:
    registry = new_store(tmp_path / "store")
    original = publish(registry, "v000001", seed=1, parents=("v000000",))
    address = f"memory://{tmp_path.name}/models"
    other, manifest = copy_version(registry, CURRENT, address)
    assert manifest == original == other.verify("v000001")
    assert other.pointers() == {}
    with pytest.raises(VersionExists):
        copy_version(registry, CURRENT, address)
    back, _ = copy_version(other, "v000001", tmp_path / "back")
    for name in original.files:
        assert back.read("v000001", name) == registry.read("v000001", name)
    assert tuple(back.catalogue) == tuple(registry.catalogue)
    Registry.create(tmp_path / "third", replace(registry.info, data="else"), registry.catalogue)
    with pytest.raises(StoreMismatch):
        copy_version(registry, CURRENT, tmp_path / "third")


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        ("minilm", "sentence-transformers/all-MiniLM-L6-v2"),
        ("bert-base-uncased", "bert-base-uncased"),
        ("owner/name", "owner/name"),
        ("/data/bert", None),
        ("./bert", None),
        ("a/b/c", None),
        ("~/bert", None),
    ],
)
def test_only_public_names_are_given(encoder: str, expected: str | None) -> None:
    assert hub_name(encoder) == expected
