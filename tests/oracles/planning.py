"""Slow twin of the planner: cohorts and participations node by node, as the definition says."""

from collections import Counter
from collections.abc import Mapping

from common.ids import rng_for
from server.plan import RunPlan


def cohort_of(plan: RunPlan, number: int, nodes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the nodes of a round: each by a chance of its own, or a sample of fixed size without replacement."""
    if plan.drawn_by_chance:
        chances = rng_for("chance", plan.seed, number).random(len(nodes))
        return tuple(node for node, chance in zip(nodes, chances, strict=True) if chance < plan.privacy.cohort_rate)
    chosen = rng_for("cohort", plan.seed, number).choice(len(nodes), size=plan.cohort, replace=False)
    return tuple(sorted(nodes[int(index)] for index in chosen))


def planned_steps(plan: RunPlan, nodes: tuple[int, ...]) -> Mapping[int, int]:
    """Return the steps of each node: its rounds, or with one noise for all nodes the most of any."""
    if plan.drawn_by_chance:
        counts = Counter({node: plan.rounds for node in nodes})
    else:
        counts = Counter(node for number in range(1, plan.rounds + 1) for node in cohort_of(plan, number, nodes))
    steps = 1 if plan.privacy.unit == "client" else plan.objective.local_steps
    most = max(counts.values(), default=1) * steps
    return {node: count * steps if plan.privacy.noise == "local" else most for node, count in counts.items()}
