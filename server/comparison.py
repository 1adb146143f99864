"""What changed from one version to another: quality, guarantee, settings, adapter, item vectors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from common.errors import ArtifactCorrupt, StoreMismatch
from common.manifests import Manifest
from common.ranks import A, B
from server.artifact import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ITEM_VECTORS
from server.registry import Registry

RESULTS = frozenset({"adapter_sha256", "gate", "promoted", "reason", "slices"})
"""Details of a manifest that a version came out with, not what it was made by."""
_PREFIX = "base_model.model."

Pair = tuple[Any, Any]


@dataclass(frozen=True, slots=True)
class LayerChange:
    """What one adapted layer adds to its weights, in two versions.

    The factors of a LoRA adapter are not unique (B M and M^-1 A are the same adapter), so their product is compared:
    ``W = alpha / r * B A``.

    Parameters
    ----------
    layer
        Its name in the encoder.
    norm_a, norm_b
        Frobenius norms of W in either version.
    difference
        Frobenius norm of the difference.
    """

    layer: str
    norm_a: float
    norm_b: float
    difference: float


@dataclass(frozen=True, slots=True)
class ItemChange:
    """How far one item's vector moved.

    Parameters
    ----------
    item_id, title
        Of the item.
    distance
        Euclidean, between unit vectors: 0 to 2.
    """

    item_id: str
    title: str
    distance: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Version `b` against version `a`; of a pair the first is `a`'s.

    Parameters
    ----------
    a, b
        Names of the versions.
    metrics
        Row to metric to pair; None where a version lacks it.
    privacy
        Field of the claim to pair.
    settings
        What differs of encoder, details and adapter configuration: name to pair.
    layers
        In the encoder's order.
    items
        Those that moved most, farthest first.
    mean_distance
        Over all items.
    """

    a: str
    b: str
    metrics: Mapping[str, Mapping[str, Pair]]
    privacy: Mapping[str, Pair]
    settings: Mapping[str, Pair]
    layers: tuple[LayerChange, ...]
    items: tuple[ItemChange, ...]
    mean_distance: float


def compare(registry: Registry, a: str, b: str, top: int = 10) -> Comparison:
    """Compare two versions of one store, given by version or pointer name.

    Parameters
    ----------
    top
        How many items to name.

    Raises
    ------
    VersionNotFound
        When there is no such version.
    ArtifactCorrupt
        When a file of one of them is damaged.
    StoreMismatch
        When their item vectors cannot be compared.
    """
    old, new = registry.manifest(a), registry.manifest(b)
    configs = _config(registry, old.version), _config(registry, new.version)
    distances = _distances(registry, old.version, new.version)
    farthest = np.argsort(-distances, kind="stable")[:top]
    catalogue = tuple(registry.catalogue)
    return Comparison(
        a=old.version,
        b=new.version,
        metrics=_metrics(old, new),
        privacy=_paired(_claim(old), _claim(new)),
        settings=_different(_paired(_settings(old, configs[0]), _settings(new, configs[1]))),
        layers=_layers(
            _products(registry.arrays(old.version, ADAPTER_WEIGHTS), configs[0]),
            _products(registry.arrays(new.version, ADAPTER_WEIGHTS), configs[1]),
        ),
        items=tuple(
            ItemChange(catalogue[row].item_id, catalogue[row].title, float(distances[row])) for row in farthest
        ),
        mean_distance=float(distances.mean()) if len(distances) else 0.0,
    )


def _paired(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Pair]:
    return {name: (old.get(name), new.get(name)) for name in dict.fromkeys([*old, *new])}


def _different(pairs: Mapping[str, Pair]) -> dict[str, Pair]:
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _metrics(old: Manifest, new: Manifest) -> dict[str, dict[str, Pair]]:
    rows = _paired(old.metrics, new.metrics)
    return {
        row: {
            metric: pair
            for metric, pair in _paired(first or {}, second or {}).items()
            if any(isinstance(value, int | float) for value in pair)
        }
        for row, (first, second) in rows.items()
    }


def _claim(manifest: Manifest) -> dict[str, Any]:
    claim: dict[str, Any] = msgspec.to_builtins(manifest.privacy) or {}
    return claim


def _config(registry: Registry, version: str) -> dict[str, Any]:
    raw = registry.read(version, ADAPTER_CONFIG)
    try:
        config = json.loads(raw)
    except ValueError as error:
        raise ArtifactCorrupt(f"{ADAPTER_CONFIG} of version {version!r} is no JSON: {error}") from error
    return config if isinstance(config, dict) else {}


def _settings(manifest: Manifest, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "parents": list(manifest.parents),
        "base_encoder": manifest.base_encoder,
        "base_sha256": manifest.base_sha256,
        **{name: value for name, value in manifest.details.items() if name not in RESULTS},
        **{f"adapter.{name}": value for name, value in config.items()},
    }


def _products(arrays: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return what each adapted layer adds to its weights; a tensor that is no LoRA factor as it is."""
    found = {}
    for name, array in arrays.items():
        layer = name.removeprefix(_PREFIX)
        if A in name:
            up = arrays.get(name.replace(A, B))
            if up is None:
                raise ArtifactCorrupt(f"tensor {name!r} has no partner {name.replace(A, B)!r}")
            found[layer.partition(f".{A}")[0]] = _scale(config, len(array)) * (up @ array)
        elif B not in name:
            found[layer] = array
    return found


def _scale(config: Mapping[str, Any], rank: int) -> float:
    # a client of a smaller rank keeps the scale of the adapter's own rank
    alpha, full = float(config.get("lora_alpha", rank)), int(config.get("r", rank))
    return alpha / full**0.5 if config.get("use_rslora") else alpha / full


def _layers(old: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray]) -> tuple[LayerChange, ...]:
    changes = []
    for layer in sorted({*old, *new}, key=_natural):
        either = old.get(layer, new.get(layer))
        if either is None:
            continue
        first, second = old.get(layer, np.zeros_like(either)), new.get(layer, np.zeros_like(either))
        if first.shape != second.shape:
            raise StoreMismatch(f"layer {layer!r} is {first.shape} in one version", expected=f"{second.shape}")
        norms = (float(np.linalg.norm(array)) for array in (first, second, second - first))
        changes.append(LayerChange(layer, *norms))
    return tuple(changes)


def _natural(layer: str) -> list[tuple[int, str]]:
    """Sort layer 10 behind layer 9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in layer.split(".")]


def _distances(registry: Registry, a: str, b: str) -> np.ndarray:
    old, new = (registry.arrays(version, ITEM_VECTORS)["item_vectors"] for version in (a, b))
    if old.shape != new.shape:
        raise StoreMismatch(
            f"item vectors of {a} are {old.shape}, of {b} {new.shape}",
            expected="one shape",
            mend="compare versions of one encoder",
        )
    moved: np.ndarray = np.linalg.norm(new.astype(np.float64) - old, axis=1)
    return moved
