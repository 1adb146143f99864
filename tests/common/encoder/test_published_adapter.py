"""What is published is a PEFT folder that others can load without this program."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from common.clock import wall_clock
from common.encoder.adapter import TextEncoder
from common.encoder.cache import open_or_build
from common.encoder.spec import EncoderSpec
from common.ids import rng_for
from common.instructions import Objective, PrivacyTerms
from common.items import Catalogue, Item
from server.evaluate import build_test
from server.registry import Registry
from server.release import Publisher
from server.rounds import RoundRecord, RunPlan, RunState
from server.store_info import StoreInfo

TEXTS = ["the brave hero", "old river town", "dark secret of the sea", "a love story in winter"]


@pytest.fixture
def published(tiny_bert: Path, tmp_path: Path) -> tuple[Registry, TextEncoder, RunState]:
    """Publish a random adapter as the second round of a run."""
    encoder = TextEncoder.load(EncoderSpec.from_name(str(tiny_bert)))
    catalogue = Catalogue(Item(str(row), text, text) for row, text in enumerate(TEXTS))
    registry = Registry.create(tmp_path / "store", StoreInfo("tiny", encoder.sha256, "texts", 1), catalogue)
    plan = RunPlan("run", 0, 2, 1, "fedsvd", 0.01, encoder.sha256, Objective(), PrivacyTerms())
    rng = rng_for("published")
    adapter = {name: rng.standard_normal(a.shape).astype(np.float32) * 0.3 for name, a in encoder.adapter().items()}
    history = tuple(RoundRecord(n, 1, 1, {}, (), epsilon, 1, {}, None) for n, epsilon in ((1, 3.0), (2, 2.0)))
    state = RunState(2, adapter, {"step": np.float64(2) * np.ones(())}, history)
    events = build_test([("u", 0), ("v", 1)], [("u", 1), ("v", 2)], len(TEXTS))
    publisher = Publisher(
        registry, encoder, open_or_build(tmp_path / "cache", encoder, TEXTS), events, {}, plan, wall_clock
    )
    publisher.publish(state)
    assert publisher.publish(state).version == "v000002"  # a second time is no second version
    return registry, encoder, state


def test_plain_peft_loads_it_and_gives_the_same_vectors(
    published: tuple[Registry, TextEncoder, RunState], tiny_bert: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoTokenizer, BertModel

    registry, _, _ = published
    folder = registry.folder("current") / "adapter"
    base = BertModel.from_pretrained(tiny_bert, add_pooling_layer=False)
    model = PeftModel.from_pretrained(base, folder).eval()
    batch = AutoTokenizer.from_pretrained(tiny_bert)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    weights = batch["attention_mask"].unsqueeze(-1).float()
    vectors = torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1).numpy()
    stored = registry.arrays("current", "item_vectors.safetensors")["item_vectors"]
    np.testing.assert_allclose(stored, vectors, rtol=0, atol=1e-5)


def test_it_names_no_folder_of_this_machine_but_the_encoder(
    published: tuple[Registry, TextEncoder, RunState],
) -> None:
    registry, encoder, _ = published
    config = json.loads((registry.folder("current") / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == encoder.spec.name
    assert config["inference_mode"] is True


def test_the_claim_is_the_largest_epsilon_ever(published: tuple[Registry, TextEncoder, RunState]) -> None:
    registry, _, state = published
    manifest = registry.verify("current")
    assert manifest.privacy is not None
    assert (manifest.privacy.epsilon, manifest.privacy.budget, manifest.privacy.unit) == (3.0, 8.0, "user")
    assert manifest.details["adapter_sha256"] == state.adapter_sha256
    assert manifest.details["round"] == 2
