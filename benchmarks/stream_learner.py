"""Claim: with river's own model on arrays, the ten best of 1,682 items cost less than a hundredth of river's `rank`.

All see the same clicks in the same order and answer before each the same question: the ten best of all items for the
user. `PointwiseMF` is river's own model on arrays; `MF` is another one (it folds the user from recent items and learns
by sampled softmax over 50 negatives, with 64 factors) and `Blend` mixes four members, so for these it is cost that is
compared, not quality. river's model has 10 factors, its default and the cheaper choice.

Time is the thread's own processor time, not the wall's: on a busy machine a call of milliseconds is interrupted and a
call of microseconds is not, so wall clocks flatter the quicker side. The learners take turns block by block, so that a
slow spell of the machine meets all, and each ratio is given with its spread over the blocks.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from _record import write_result
from river import reco

from common.datasets.synthetic import SyntheticSpec, make_synthetic
from common.events import Interaction
from stream.learner.base import ArrayRanker
from stream.learner.blend import Blend
from stream.learner.mf import MF
from stream.learner.pointwise import PointwiseMF

SPEC = SyntheticSpec(users=943, items=1_682, events=12_000)
WARM, BLOCKS, BLOCK = 6_000, 12, 80
K = 10
RIVER = "river.BiasedMF"
Answer = Callable[[str], object]
Learn = Callable[[str, str], object]


def measure(answer: Answer, learn: Learn, events: Sequence[Interaction]) -> tuple[float, float]:
    """Return the microseconds of processor time that an answer and a lesson take, mean over the events."""
    answered = learned = 0
    for event in events:
        start = time.thread_time_ns()
        answer(event.user_id)
        middle = time.thread_time_ns()
        learn(event.user_id, event.item_id)
        answered += middle - start
        learned += time.thread_time_ns() - middle
    return answered / len(events) / 1e3, learned / len(events) / 1e3


def spread(values: np.ndarray) -> dict[str, float]:
    """Return median, least and most of float64 [blocks]."""
    found = {"median": np.median(values), "least": values.min(), "most": values.max()}
    return {name: round(float(value), 1) for name, value in found.items()}


def contenders(ids: tuple[str, ...]) -> dict[str, tuple[Answer, Learn]]:
    """Return how each answers and learns."""
    blend = Blend(seed=0)
    ours: dict[str, ArrayRanker] = {"MF": MF(seed=0), "PointwiseMF": PointwiseMF(seed=0), "Blend": blend}
    for learner in ours.values():
        learner.add_items(ids)
    # texts cost the same whatever they say
    blend.describe(ids, np.random.default_rng(0).standard_normal((len(ids), 384)))
    river, catalogue = reco.BiasedMF(seed=0), set(ids)
    found: dict[str, tuple[Answer, Learn]] = {
        name: (partial(one.top_k, k=K), one.learn_one) for name, one in ours.items()
    }
    found[RIVER] = (
        lambda user: river.rank(user, catalogue)[:K],
        lambda user, item: river.learn_one(user, item, 1.0),
    )
    return found


def main() -> None:
    """Measure, write, and print a line each."""
    dataset = make_synthetic(SPEC, seed=0)
    ids, events = dataset.catalogue.ids, dataset.interactions
    each = contenders(ids)
    for event in events[:WARM]:
        for _, learn in each.values():
            learn(event.user_id, event.item_id)
    # before the clock starts: ours is compiled, and river makes a row for every item it is asked about
    for answer, _ in each.values():
        answer(events[0].user_id)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in each}
    for start in range(WARM, WARM + BLOCKS * BLOCK, BLOCK):
        for name, (answer, learn) in each.items():
            times[name].append(measure(answer, learn, events[start : start + BLOCK]))
    blocks = {name: np.array(found) for name, found in times.items()}
    rows = {}
    for name, found in blocks.items():
        answer_us, learn_us = np.median(found, axis=0).round(1).tolist()
        both_us = round(float(np.median(found.sum(axis=1))), 1)
        rows[name] = {"answer_cpu_us": answer_us, "learn_cpu_us": learn_us, "both_cpu_us": both_us}
    ratios = {
        name: {
            "answer": spread(blocks[RIVER][:, 0] / found[:, 0]),
            "both": spread(blocks[RIVER].sum(axis=1) / found.sum(axis=1)),
        }
        for name, found in blocks.items()
        if name != RIVER
    }
    figures = {
        "items": len(ids),
        "events": BLOCKS * BLOCK,
        "blocks": BLOCKS,
        "clock": "processor time of the thread",
        "rows": rows,
        "times_river": ratios,
    }
    path = write_result("stream_learner", figures, ("river", "numpy", "numba"))
    for name, row in rows.items():
        told = f"{name}: {row['answer_cpu_us']} us an answer, {row['learn_cpu_us']} us a lesson"
        print(told + (f"; answers {ratios[name]['answer']['median']} times river's" if name in ratios else ""))
    print(path.name)


if __name__ == "__main__":
    main()
