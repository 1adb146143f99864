"""From a round's state to a published version: adapter, its item vectors, metrics and claim in one artifact."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import takewhile

from common.clock import Clock
from common.encoder.adapter import TextEncoder
from common.encoder.cache import HiddenCache, encode_items
from common.errors import ArtifactCorrupt, VersionNotFound
from common.manifests import Manifest, TensorSpec
from common.store import pack_arrays
from server.artifact import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ITEM_VECTORS, STRATEGY_STATE
from server.evaluate import Quality, Ranking, TestEvents, by_text, quality_of, rank
from server.gate import Verdict, difference, judge
from server.registry import CURRENT, Registry
from server.rounds import RunPlan, RunState
from server.serving.beside import rows_file
from server.slices import Rows, by_slice, client_slice, slices_of
from server.traffic import traffic_of


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
    control_slices
        The controls in each slice: row name to slice name to metrics.
    owner
        User id to node, for the slice of clients.
    """

    registry: Registry
    encoder: TextEncoder
    cache: HiddenCache
    events: TestEvents
    controls: Mapping[str, Quality]
    plan: RunPlan
    clock: Clock
    control_slices: Mapping[str, Rows] = field(default_factory=dict)
    owner: Mapping[str, int] = field(default_factory=dict)

    def publish(self, state: RunState) -> Manifest:
        """Publish the state as version ``v<number>``; a version already there is kept.

        ``current`` is pointed at it, unless the gate (`server.gate`) held it back: then ``promoted`` in the manifest's
        details is false, and ``reason`` says why.
        """
        version = self.version_of(state)
        # an older version that is damaged stops nobody
        newest = tuple(manifest.version for manifest in self.registry.examine()[0])[-1:]
        published = self.has(state)
        manifest = self.registry.manifest(version) if published else self._write(version, state, self._parents(newest))
        if is_promoted(manifest):
            self.registry.point(CURRENT, version)
        return manifest

    def has(self, state: RunState) -> bool:
        """Return whether the state is published."""
        return self.version_of(state) in self.registry.names()

    def version_of(self, state: RunState) -> str:
        """Return the name of the version that a state becomes: its round, counted on from where the run started."""
        return f"v{state.round + (self.plan.start.number if self.plan.start else 0):06d}"

    def _parents(self, newest: tuple[str, ...]) -> tuple[str, ...]:
        """Return what the next version is made of, in this store: what the run published last, or where it started."""
        start = self.plan.start
        if start is None or any(number_of(version) > start.number for version in newest):
            return newest
        return () if start.elsewhere else (start.version,)

    def held_back_in_a_row(self) -> int:
        """Return how many of the newest versions the gate held back, one after the other."""
        newest_first = reversed(self.registry.examine()[0])
        return sum(1 for _ in takewhile(lambda manifest: not is_promoted(manifest), newest_first))

    def _judge(self, ranking: Ranking) -> Verdict:
        current = self.registry.pointer(CURRENT)
        if current is None:
            return Verdict(True, "there was no version before it")
        try:
            vectors = self.registry.arrays(current, ITEM_VECTORS)["item_vectors"]
        except (ArtifactCorrupt, VersionNotFound) as error:
            return Verdict(True, f"the current version cannot be compared with: {error}", current)
        old = rank(self.events, by_text(self.events, vectors), self.plan.seed)
        return judge(current, difference(ranking.hits, old.hits, self.events.user, self.plan.seed))

    def _write(self, version: str, state: RunState, parents: tuple[str, ...]) -> Manifest:
        self.encoder.set_adapter(state.adapter)
        vectors = encode_items(self.encoder, self.cache)
        ranking = rank(self.events, by_text(self.events, vectors), self.plan.seed)
        rows = {**self.controls, "global": quality_of(ranking.full, self.events.user, self.plan.seed)}
        slices = {**self.control_slices, "global": row_slices(self.events, ranking, self.owner, self.plan.seed)}
        verdict = self._judge(ranking)
        config = {**self.encoder.lora_config.to_dict(), "inference_mode": True}
        files = {
            ADAPTER_CONFIG: json.dumps(config, indent=2, sort_keys=True, default=_jsonable).encode(),
            ADAPTER_WEIGHTS: pack_arrays(state.adapter),
            ITEM_VECTORS: pack_arrays({"item_vectors": vectors}),
            STRATEGY_STATE: pack_arrays(state.strategy_state),
            **rows_file(vectors),
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
            privacy=state.claim(self.plan.privacy, self.plan.start),
            details={
                "round": state.round,
                "strategy": self.plan.strategy,
                "seed": self.plan.seed,
                "adapter_sha256": state.adapter_sha256,
                "promoted": verdict.promoted,
                "reason": verdict.reason,
                "gate": verdict.as_json(),
                "slices": by_slice(slices),
                "traffic": traffic_of(state.history, self.plan.uplink),
                **({"started_from": asdict(self.plan.start)} if self.plan.start else {}),
            },
        )
        return self.registry.publish(files, manifest)


def number_of(version: str) -> int:
    """Return the number in a version's name; 0 for a name of another form."""
    number = version.removeprefix("v")
    return int(number) if number.isdecimal() else 0


def is_promoted(manifest: Manifest) -> bool:
    """Return whether the gate let the version become the current one; without a verdict it did."""
    return bool(manifest.details.get("promoted", True))


def row_slices(events: TestEvents, ranking: Ranking, owner: Mapping[str, int], seed: int) -> Rows:
    """Return one row's metrics in every slice, clients included where there are any."""
    spread = {"clients": client_slice(events, ranking, owner)} if owner else {}
    return {**slices_of(events, ranking, seed), **spread}


def _jsonable(value: object) -> object:
    """PEFT's configuration holds sets and enums."""
    return sorted(map(str, value)) if isinstance(value, set) else str(getattr(value, "value", value))
