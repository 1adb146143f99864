"""Claim: the fused model ranks the next click higher than either of its two learners alone.

MovieLens-100K, global time split of the positive ratings. The click learners have learned the first 80% and are frozen
(items stale), users are live: each test click extends the user's history before the next one is ranked. Full rank over
all items with a positive rating that the user has not liked yet, ties against the model. The text vectors are those of
the current version of a store, whose adapter was trained on the same 80%.

"blend" is what is served by default: the stream's blend, told those texts. "factors and text" is what is served where
the stream learned factors alone.

Needs a store: ``python benchmarks/fused_quality.py anabranch-store`` after `make demo`.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from _record import write_result

from common.blends import MEMBERS
from common.datasets.registry import load_dataset
from common.datasets.split import global_time_split, positives
from common.events import Interaction
from common.items import Catalogue
from common.manifests import Manifest
from server.registry import Registry
from server.serving.alignment import align
from server.serving.blended import Asked, blended
from server.serving.bundle import Bundle, Model, Stream, load_model
from server.serving.fusion import FusionTable, FusionWeights, fuse
from server.serving.tables import ItemTable
from stream.learner.blend import Blend
from stream.learner.mf import MF

TOP = 10
ROWS = {
    "factors and text": FusionTable(),
    "factors alone": FusionTable(((0, FusionWeights(1.0, 0.0, 0.0, 0.0)),)),
    "text alone": FusionTable(((0, FusionWeights(0.0, 1.0, 0.0, 0.0)),)),
    "popularity alone": FusionTable(((0, FusionWeights(0.0, 0.0, 0.0, 1.0)),)),
}
Case = tuple[np.ndarray, int]
Answer = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""History and candidates to scores."""


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


def _by_table(bundle: Bundle, table: FusionTable) -> Answer:
    return lambda history, eligible: fuse(bundle, history, None, eligible, table).scores


def _by_blend(bundle: Bundle) -> Answer:
    stream = bundle.stream
    blend = None if stream is None else stream.snapshot.blend
    if stream is None or blend is None:
        raise TypeError("a bundle without a blend")
    nothing = np.empty(0, dtype=np.float32)

    def answer(history: np.ndarray, eligible: np.ndarray) -> np.ndarray:
        asked = Asked(history, len(history), history, nothing, history)
        return blended(bundle, stream, blend, asked, None).at(np.arange(len(bundle.items))).scores

    return answer


def _recall(answer: Answer, cases: list[Case], candidates: np.ndarray) -> float:
    hits = 0
    for history, target in cases:
        eligible = candidates.copy()
        eligible[history] = False
        scores = answer(history, eligible)
        hits += int((scores[eligible] >= scores[target]).sum() <= TOP)
    return hits / len(cases)


def _bundle(registry: Registry, model: Model, learner: MF | Blend, train: Sequence[Interaction]) -> Bundle:
    """Return what is served when the learner has learned the training part."""
    learner.add_items(registry.catalogue.ids)
    learner.learn_many([event.user_id for event in train], [event.item_id for event in train])
    snapshot = align(learner.snapshot({}), registry.catalogue)
    return Bundle(ItemTable.of(registry.catalogue), model, Stream(Manifest("snapshot", "benchmark", (), 0), snapshot))


def _without_texts(bundle: Bundle) -> Bundle:
    """Return the bundle with no weight on likeness of texts."""
    if bundle.stream is None or bundle.stream.snapshot.blend is None:
        raise TypeError("a bundle without a blend")
    blend = bundle.stream.snapshot.blend
    weights = blend.weights.copy()
    weights[:, MEMBERS.index("content")] = 0.0
    snapshot = replace(bundle.stream.snapshot, blend=replace(blend, weights=weights))
    return replace(bundle, stream=Stream(bundle.stream.manifest, snapshot))


def main() -> None:
    """Measure, write, and print one line a row."""
    store = Path(sys.argv[1] if len(sys.argv) > 1 else "anabranch-store")
    if not (store / "store.json").exists():
        print(f"no store at {store}: nothing is measured; `make demo` makes one")
        return
    dataset = load_dataset("movielens-100k", notice=print)
    train, test = global_time_split(positives(dataset), 0.8)
    registry = Registry.open(store)
    model = load_model(registry)
    factors = _bundle(registry, model, MF(seed=0), train)
    told, untold = Blend(seed=0), Blend(seed=0)
    told.describe(registry.catalogue.ids, model.item_vectors)
    answers = {"blend": _by_blend(_bundle(registry, model, told, train))}
    answers["blend without texts"] = _by_blend(_without_texts(_bundle(registry, model, untold, train)))
    answers |= {name: _by_table(factors, table) for name, table in ROWS.items()}
    candidates = np.zeros(len(dataset.catalogue), dtype=bool)
    for event in (*train, *test):
        candidates[dataset.catalogue.index(event.item_id)] = True
    cases = _cases(registry.catalogue, train, test)
    recall = {name: round(_recall(answer, cases, candidates), 4) for name, answer in answers.items()}
    best = max(recall["blend without texts"], recall["text alone"])
    figures = {
        "version": factors.version,
        "events": len(cases),
        "recall@10": recall,
        "ratio": round(recall["blend"] / best, 3),
    }
    path = write_result("fused_quality", figures, ("torch", "numpy", "numba"))
    for name, value in recall.items():
        print(f"{name}: recall@10 {value}")
    print(f"blend / the better of clicks alone and text alone: {figures['ratio']}; {path.name}")


if __name__ == "__main__":
    main()
