"""Two versions beside each other: what is reported is what a plain, dense computation finds."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.errors import ArtifactCorrupt, StoreMismatch, VersionNotFound
from common.ids import rng_for
from common.privacy import PrivacyClaim
from common.store import pack_arrays
from server.comparison import compare
from server.registry import Registry
from tests.server.serving.stores import new_store, version_manifest

LAYERS = ("encoder.layer.9.attention.self.query", "encoder.layer.10.attention.self.value")


def adapter_of(seed: int, rank: int) -> dict[str, np.ndarray]:
    draw = rng_for("comparison", seed)
    arrays = {}
    for layer in LAYERS:
        arrays[f"base_model.model.{layer}.lora_A.weight"] = draw.standard_normal((rank, 6)).astype(np.float32)
        arrays[f"base_model.model.{layer}.lora_B.weight"] = draw.standard_normal((8, rank)).astype(np.float32)
    return arrays


def put(registry: Registry, version: str, seed: int, *, rank: int = 2, alpha: int = 4, rslora: bool = False) -> None:
    draw = rng_for("vectors", seed)
    vectors = draw.standard_normal((20, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    config = {"r": rank, "lora_alpha": alpha, "use_rslora": rslora, "target_modules": ["query", "value"]}
    files = {
        "adapter/adapter_config.json": json.dumps(config).encode(),
        "adapter/adapter_model.safetensors": pack_arrays(adapter_of(seed, rank)),
        "item_vectors.safetensors": pack_arrays({"item_vectors": vectors}),
    }
    base = version_manifest(version)
    registry.publish(files, replace(base, details={**base.details, "seed": seed, "slices": {"cold": seed}}))


def test_layers_and_items_are_what_a_dense_computation_finds(tmp_path: Path) -> None:
    registry = new_store(tmp_path)
    put(registry, "v1", 1, rank=2, alpha=4)
    put(registry, "v2", 2, rank=3, alpha=9, rslora=True)
    found = compare(registry, "v1", "v2", top=4)
    for change, layer in zip(found.layers, LAYERS, strict=True):
        dense = []
        for seed, rank, scale in ((1, 2, 4 / 2), (2, 3, 9 / 3**0.5)):
            arrays, added = adapter_of(seed, rank), np.zeros((8, 6))
            for each in range(rank):
                up = arrays[f"base_model.model.{layer}.lora_B.weight"][:, each]
                added += scale * np.outer(up, arrays[f"base_model.model.{layer}.lora_A.weight"][each])
            dense.append(added)
        expected = [float(np.sqrt((matrix**2).sum())) for matrix in (*dense, dense[1] - dense[0])]
        assert change.layer == layer
        assert [change.norm_a, change.norm_b, change.difference] == pytest.approx(expected, rel=1e-5)
    old, new = (registry.arrays(name, "item_vectors.safetensors")["item_vectors"] for name in ("v1", "v2"))
    moved = sorted(((float(np.sqrt(((old[row] - new[row]) ** 2).sum())), str(row)) for row in range(20)), reverse=True)
    assert [item.item_id for item in found.items] == [row for _, row in moved[:4]]
    assert [item.distance for item in found.items] == pytest.approx([distance for distance, _ in moved[:4]], rel=1e-5)
    assert found.items[0].title == f"Square {moved[0][1]}" or found.items[0].title == "Submarine"
    assert found.mean_distance == pytest.approx(sum(distance for distance, _ in moved) / 20, rel=1e-5)


def test_the_same_adapter_in_other_factors_has_not_changed(tmp_path: Path) -> None:
    registry = new_store(tmp_path)
    put(registry, "v1", 1)
    turned = {}
    mix = np.array([[0.0, 2.0], [-0.5, 1.0]], dtype=np.float32)
    for name, array in adapter_of(1, 2).items():
        turned[name] = mix @ array if "lora_A" in name else array @ np.linalg.inv(mix)
    files = {name: registry.read("v1", name) for name in registry.manifest("v1").files}
    files["adapter/adapter_model.safetensors"] = pack_arrays(turned)
    registry.publish(files, version_manifest("v2"))
    found = compare(registry, "v1", "v2")
    assert max(change.difference for change in found.layers) < 1e-4 < min(change.norm_a for change in found.layers)
    assert found.mean_distance == 0.0


def test_quality_guarantee_and_settings_beside_each_other(tmp_path: Path) -> None:
    registry = new_store(tmp_path)
    put(registry, "v1", 1)
    put(registry, "v2", 2, rank=3)
    files = {name: registry.read("v2", name) for name in registry.manifest("v2").files}
    other = replace(
        version_manifest("v3", parents=("v2",)),
        metrics={"global": {"recall@10": 0.5, "ci95": [0.1, 0.2]}, "random": {"recall@10": 0.01}},
        privacy=PrivacyClaim("user", 7.0, 1e-5, 8.0, "prv"),
    )
    registry.publish(files, other)
    registry.point("current", "v3")
    found = compare(registry, "v1", "current", top=0)
    assert (found.a, found.b, found.items) == ("v1", "v3", ())
    assert found.metrics == {
        "global": {"recall@10": (0.25, 0.5), "ndcg@10": (0.125, None)},
        "random": {"recall@10": (None, 0.01)},
    }
    assert found.privacy["epsilon"] == (3.5, 7.0)
    assert found.privacy["unit"] == ("user", "user")
    assert found.settings == {"parents": ([], ["v2"]), "seed": (1, 0), "adapter.r": (2, 3)}


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    registry = new_store(tmp_path)
    put(registry, "v1", 1)
    files = {name: registry.read("v1", name) for name in registry.manifest("v1").files}
    narrow = {**files, "item_vectors.safetensors": pack_arrays({"item_vectors": np.ones((20, 3), dtype=np.float32)})}
    registry.publish(narrow, version_manifest("v2"))
    with pytest.raises(StoreMismatch, match=r"item vectors of v1 are \(20, 5\), of v2 \(20, 3\)"):
        compare(registry, "v1", "v2")
    with pytest.raises(VersionNotFound):
        compare(registry, "v1", "v9")
    registry.publish({**files, "adapter/adapter_config.json": b"{"}, version_manifest("v3"))
    with pytest.raises(ArtifactCorrupt, match="is no JSON"):
        compare(registry, "v1", "v3")
    half = {name: array for name, array in adapter_of(1, 2).items() if "lora_A" in name}
    registry.publish({**files, "adapter/adapter_model.safetensors": pack_arrays(half)}, version_manifest("v4"))
    with pytest.raises(ArtifactCorrupt, match="no partner"):
        compare(registry, "v1", "v4")
