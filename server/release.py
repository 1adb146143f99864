"""From a round's state to a published version: adapter, its item vectors, metrics and claim in one artifact."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from common.clock import Clock
from common.encoder.adapter import TextEncoder
from common.encoder.cache import HiddenCache, encode_items
from common.manifests import Manifest, TensorSpec
from common.store import pack_arrays
from server.evaluate import Quality, TestEvents, by_text, measure
from server.registry import Registry
from server.rounds import RunPlan, RunState

ADAPTER_CONFIG = "adapter/adapter_config.json"
ADAPTER_WEIGHTS = "adapter/adapter_model.safetensors"
ITEM_VECTORS = "item_vectors.safetensors"
STRATEGY_STATE = "strategy_state.safetensors"


@dataclass(frozen=True, slots=True)
class Publisher:
    """Evaluates a state and publishes it as a version.

    Parameters
    ----------
    registry
        Where to.
    encoder, cache
        To encode the items with the new adapter.
    events
        The test events.
    controls
        Rows that do not change from round to round (random, popularity, zero-shot).
    plan
        The run.
    clock
        Stamps the manifest.
    """

    registry: Registry
    encoder: TextEncoder
    cache: HiddenCache
    events: TestEvents
    controls: Mapping[str, Quality]
    plan: RunPlan
    clock: Clock

    def publish(self, state: RunState) -> Manifest:
        """Publish the state as version ``v<round>`` and point ``current`` at it; a version already there is kept."""
        version = f"v{state.round:06d}"
        known = {manifest.version: manifest for manifest in self.registry.versions()}
        if version not in known:
            known[version] = self._write(version, state, tuple(known)[-1:])
        self.registry.point("current", version)
        return known[version]

    def _write(self, version: str, state: RunState, parents: tuple[str, ...]) -> Manifest:
        self.encoder.set_adapter(state.adapter)
        vectors = encode_items(self.encoder, self.cache)
        rows = {**self.controls, "global": measure(self.events, by_text(self.events, vectors), self.plan.seed)}
        config = {**self.encoder.lora_config.to_dict(), "inference_mode": True}
        files = {
            ADAPTER_CONFIG: json.dumps(config, indent=2, sort_keys=True, default=_jsonable).encode(),
            ADAPTER_WEIGHTS: pack_arrays(state.adapter),
            ITEM_VECTORS: pack_arrays({"item_vectors": vectors}),
            STRATEGY_STATE: pack_arrays(state.strategy_state),
        }
        tensors = {**state.adapter, "item_vectors": vectors}
        manifest = Manifest(
            kind="adapter",
            version=version,
            parents=parents,
            created_at=self.clock(),
            base_encoder=self.encoder.spec.name,
            base_sha256=self.encoder.sha256,
            tensors={name: TensorSpec(array.shape, array.dtype.name) for name, array in sorted(tensors.items())},
            metrics={name: quality.as_json() for name, quality in rows.items()},
            privacy=state.claim(self.plan.privacy),
            details={
                "round": state.round,
                "strategy": self.plan.strategy,
                "seed": self.plan.seed,
                "adapter_sha256": state.adapter_sha256,
            },
        )
        return self.registry.publish(files, manifest)


def _jsonable(value: object) -> object:
    """PEFT's configuration holds sets and enums."""
    return sorted(map(str, value)) if isinstance(value, set) else str(getattr(value, "value", value))
