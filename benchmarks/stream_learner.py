"""Claim: scoring the whole catalogue and learning a click takes the array learner less time than river's BiasedMF.

Both see the same clicks in the same order and answer before each the same question: the ten best of all items for the
user. They do not hold the same model (ours folds the user from recent items and learns by sampled softmax over 50
negatives, with 64 factors; river's is pointwise with 10 factors, its default, the cheaper choice), so this compares
cost, not quality. river is measured on fewer clicks, since its ranking is a Python loop over the items.
"""

import time

import numpy as np
from _record import write_result
from river import reco

from common.datasets.synthetic import SyntheticSpec, make_synthetic
from common.events import Interaction
from stream.learner.mf import MF

SPEC = SyntheticSpec(users=900, items=1_700, events=12_000)
WARM, OURS, RIVER = 6_000, 6_000, 300
K = 10
Timings = tuple[np.ndarray, np.ndarray]


def _ours(items: tuple[str, ...], events: tuple[Interaction, ...]) -> Timings:
    model = MF(seed=0)
    model.add_items(items)
    for event in events[:WARM]:
        model.learn_one(event.user_id, event.item_id)
    model.top_k(events[0].user_id, K)  # compiled before the clock starts
    answered, learned = [], []
    for event in events[WARM : WARM + OURS]:
        start = time.perf_counter()
        model.top_k(event.user_id, K)
        middle = time.perf_counter()
        model.learn_one(event.user_id, event.item_id)
        answered.append(middle - start)
        learned.append(time.perf_counter() - middle)
    return np.array(answered), np.array(learned)


def _river(items: tuple[str, ...], events: tuple[Interaction, ...]) -> Timings:
    model = reco.BiasedMF(seed=0)
    for event in events[:WARM]:
        model.learn_one(event.user_id, event.item_id, 1.0)
    catalogue = set(items)
    model.rank(events[0].user_id, catalogue)  # it makes a row for every item it is asked about
    answered, learned = [], []
    for event in events[WARM : WARM + RIVER]:
        start = time.perf_counter()
        model.rank(event.user_id, catalogue)[:K]
        middle = time.perf_counter()
        model.learn_one(event.user_id, event.item_id, 1.0)
        answered.append(middle - start)
        learned.append(time.perf_counter() - middle)
    return np.array(answered), np.array(learned)


def _row(timings: Timings) -> dict[str, float]:
    answered, learned = (part * 1e6 for part in timings)
    return {
        "events": len(answered),
        "answer_us_median": round(float(np.median(answered)), 1),
        "learn_us_median": round(float(np.median(learned)), 1),
        "both_us_median": round(float(np.median(answered + learned)), 1),
        "both_us_p99": round(float(np.percentile(answered + learned, 99)), 1),
    }


def main() -> None:
    """Measure, write, and print one line."""
    dataset = make_synthetic(SPEC, seed=0)
    ids, events = dataset.catalogue.ids, dataset.interactions
    ours, river = _row(_ours(ids, events)), _row(_river(ids, events))
    ratio = round(river["both_us_median"] / ours["both_us_median"], 1)
    figures = {"items": len(ids), "rows": {"anabranch": ours, "river.BiasedMF": river}, "ratio": ratio}
    path = write_result("stream_learner", figures, ("river", "numpy", "numba"))
    print(f"ours {ours['both_us_median']} us, river {river['both_us_median']} us an event: {ratio} times; {path.name}")


if __name__ == "__main__":
    main()
