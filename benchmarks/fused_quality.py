"""Claim: the fused model ranks the next click higher than either of its two learners alone.

MovieLens-100K, global time split of the positive ratings. The incremental MF has learned the first 80% and is frozen
(items stale), users are live: each test click extends the user's history before the next one is ranked. Full rank over
all items with a positive rating that the user has not liked yet, ties against the model. The text vectors are those of
the current version of a store, whose adapter was trained on the same 80%.

Needs a store: ``python benchmarks/fused_quality.py anabranch-store`` after `make demo`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _record import write_result

from common.datasets.registry import load_dataset
from common.datasets.split import global_time_split, positives
from common.events import Interaction
from common.items import Catalogue
from common.manifests import Manifest
from server.registry import Registry
from server.serving.bundle import Bundle, Stream, align, load_model
from server.serving.fusion import FusionTable, FusionWeights, fuse
from stream.learner.mf import MF

TOP = 10
ROWS = {
    "fused": FusionTable(),
    "factors alone": FusionTable(((0, FusionWeights(1.0, 0.0, 0.0, 0.0)),)),
    "text alone": FusionTable(((0, FusionWeights(0.0, 1.0, 0.0, 0.0)),)),
    "popularity alone": FusionTable(((0, FusionWeights(0.0, 0.0, 0.0, 1.0)),)),
}
Case = tuple[np.ndarray, int]


def _cases(catalogue: Catalogue, train: Sequence[Interaction], test: Sequence[Interaction]) -> list[Case]:
    """Return (history rows, oldest first; row of the next click) for each test click of a user with a history."""
    rows = {item_id: row for row, item_id in enumerate(catalogue.ids)}
    histories: dict[str, list[int]] = {}
    for event in train:
        histories.setdefault(event.user_id, []).append(rows[event.item_id])
    cases = []
    for event in test:
        own, row = histories.setdefault(event.user_id, []), rows[event.item_id]
        if own and row not in own:
            cases.append((np.array(own), row))
        own.append(row)
    return cases


def _recall(bundle: Bundle, cases: list[Case], candidates: np.ndarray, table: FusionTable) -> float:
    hits = 0
    for history, target in cases:
        eligible = candidates.copy()
        eligible[history] = False
        scores = fuse(bundle, history, None, eligible, table).scores
        hits += int((scores[eligible] >= scores[target]).sum() <= TOP)
    return hits / len(cases)


def main() -> None:
    """Measure, write, and print one line a row."""
    store = Path(sys.argv[1] if len(sys.argv) > 1 else "anabranch-store")
    if not (store / "store.json").exists():
        print(f"no store at {store}: nothing is measured; `make demo` makes one")
        return
    dataset = load_dataset("movielens-100k", notice=print)
    train, test = global_time_split(positives(dataset), 0.8)
    registry = Registry.open(store)
    learner = MF(seed=0)
    learner.add_items(dataset.catalogue.ids)
    learner.learn_many([event.user_id for event in train], [event.item_id for event in train])
    snapshot = align(learner.snapshot({}), registry.catalogue)
    stream = Stream(Manifest("mf-snapshot", "benchmark", (), 0), snapshot)
    bundle = Bundle(registry.catalogue, load_model(registry), stream)
    candidates = np.zeros(len(dataset.catalogue), dtype=bool)
    for event in (*train, *test):
        candidates[dataset.catalogue.index(event.item_id)] = True
    cases = _cases(registry.catalogue, train, test)
    recall = {name: round(_recall(bundle, cases, candidates, table), 4) for name, table in ROWS.items()}
    best = max(value for name, value in recall.items() if name != "fused")
    figures = {
        "version": bundle.version,
        "events": len(cases),
        "recall@10": recall,
        "ratio": round(recall["fused"] / best, 3),
    }
    path = write_result("fused_quality", figures, ("torch", "numpy", "numba"))
    for name, value in recall.items():
        print(f"{name}: recall@10 {value}")
    print(f"fused / best alone: {figures['ratio']}; {path.name}")


if __name__ == "__main__":
    main()
