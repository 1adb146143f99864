"""What a simulation did, as the command line tells it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anabranch.simulation_settings import SimulationSettings
from common.manifests import Manifest
from server.intake import RoundRecord
from server.plan import RunPlan
from server.round_store import RunState
from server.traffic import size_in_words, traffic_of


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """What a simulation did; `as_json` has the keys of the command line."""

    settings: SimulationSettings
    state: RunState
    manifest: Manifest
    seconds: Mapping[str, float]
    resumed_from: int
    stopped: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return one JSON-ready mapping."""
        history = self.state.history
        replies = sum(record.replied for record in history)
        claim = self.manifest.privacy
        return {
            "version": self.manifest.version,
            "strategy": self.settings.strategy,
            "engine": self.settings.engine,
            "seed": self.settings.seed,
            "rounds_run": self.state.round,
            "resumed_from": self.resumed_from,
            "started_from": self.manifest.details.get("started_from"),
            "adapter_sha256": self.state.adapter_sha256,
            "clients": {
                "planned": sum(record.planned for record in history),
                "replied": replies,
                "failed": sum(len(record.failed) for record in history),
                "failures": [
                    f"round {each.round}, node {node}: {why}" for each in history for node, why in each.failed.items()
                ],
                "quarantined": [
                    {"client": q.client, "round": q.round, "reason": q.reason}
                    for each in history
                    for q in each.quarantined
                ],
            },
            "privacy": {
                "unit": claim.unit if claim else "off",
                "epsilon": claim.epsilon if claim else None,
                "delta": claim.delta if claim else None,
                "budget": claim.budget if claim else None,
                "accountant": claim.accountant if claim else "none",
            },
            "bytes_per_client": sum(record.reply_bytes for record in history) // max(1, replies),
            "traffic": traffic_of(history, self.settings.uplink),
            "mode": "sync" if self.settings.asynchronous is None else "async",
            "staleness": [behind for record in history for behind in record.staleness],
            "simulated_moment": history[-1].moment if history else None,
            "stopped": self.stopped,
            "gate": dict(self.manifest.details.get("gate", {})),
            "metrics": dict(self.manifest.metrics),
            "slices": dict(self.manifest.details.get("slices", {})),
            "seconds": dict(self.seconds),
        }


def seconds_of(state: RunState, evaluate: float, total: float) -> dict[str, float]:
    """Return where the time went; training and aggregation include earlier runs of these rounds."""
    return {
        "train": sum(record.seconds["train"] for record in state.history),
        "aggregate": sum(record.seconds["aggregate"] for record in state.history),
        "evaluate": evaluate,
        "total": total,
    }


def describe(record: RoundRecord, plan: RunPlan) -> str:
    """Return one line about a round, or a version of a run without rounds."""
    bad = len(record.failed) + len(record.quarantined)
    what = "round" if plan.asynchronous is None else "version"
    parts = [
        f"{what} {record.round}/{plan.rounds}: {record.replied} of {record.planned} nodes",
        *([f"{bad} unusable"] if bad else []),
        *([f"{min(record.staleness)} to {max(record.staleness)} versions behind"] if record.staleness else []),
        *([f"simulated moment {record.moment:.1f}"] if record.moment is not None else []),
        *([f"epsilon so far {record.epsilon:.2f} of {plan.privacy.epsilon:g}"] if record.epsilon is not None else []),
        f"{size_in_words(record.down_bytes)} down, {size_in_words(record.up_bytes)} up",
    ]
    return f"{', '.join(parts)} ({record.seconds['train']:.1f} s)"
