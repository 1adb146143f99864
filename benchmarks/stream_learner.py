"""Claim: scoring the whole catalogue and learning a click takes the array learner less time than river's BiasedMF.

All see the same clicks in the same order and answer before each the same question: the ten best of all items for the
user. They do not hold the same model (ours folds the user from recent items and learns by sampled softmax over 50
negatives, with 64 factors; river's is pointwise with 10 factors, its default, the cheaper choice), so this compares
cost, not quality. The blend of four members is measured beside them.

Time is the thread's own processor time, not the wall's: on a busy machine a call of milliseconds is interrupted and a
call of microseconds is not, so wall clocks flatter the quicker side. The two take turns block by block, so that a slow
spell of the machine meets both, and the ratio is given with its spread over the blocks.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
from _record import write_result
from river import reco

from common.datasets.synthetic import SyntheticSpec, make_synthetic
from common.events import Interaction
from stream.learner.blend import Blend
from stream.learner.mf import MF

SPEC = SyntheticSpec(users=900, items=1_700, events=12_000)
WARM, BLOCKS, BLOCK = 6_000, 12, 80
K = 10
Step = Callable[[str], object]
Learn = Callable[[str, str], object]


def _measure(answer: Step, learn: Learn, events: Sequence[Interaction]) -> tuple[float, float]:
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


def _row(blocks: np.ndarray) -> dict[str, float]:
    """Return medians over the blocks, in microseconds, of float64 [blocks, 2]."""
    answer, learn = np.median(blocks, axis=0)
    return {
        "answer_cpu_us": round(float(answer), 1),
        "learn_cpu_us": round(float(learn), 1),
        "both_cpu_us": round(float(np.median(blocks.sum(axis=1))), 1),
    }


def main() -> None:
    """Measure, write, and print one line."""
    dataset = make_synthetic(SPEC, seed=0)
    ids, events = dataset.catalogue.ids, dataset.interactions
    ours, blend, river = MF(seed=0), Blend(seed=0), reco.BiasedMF(seed=0)
    ours.add_items(ids)
    # texts cost the same whatever they say
    blend.describe(ids, np.random.default_rng(0).standard_normal((len(ids), 384)))
    catalogue = set(ids)
    for event in events[:WARM]:
        ours.learn_one(event.user_id, event.item_id)
        blend.learn_one(event.user_id, event.item_id)
        river.learn_one(event.user_id, event.item_id, 1.0)
    # before the clock starts: ours is compiled, and river makes a row for every item it is asked about
    ours.top_k(events[0].user_id, K)
    blend.top_k(events[0].user_id, K)
    river.rank(events[0].user_id, catalogue)
    times: dict[str, list[tuple[float, float]]] = {"anabranch": [], "anabranch.Blend": [], "river.BiasedMF": []}
    for start in range(WARM, WARM + BLOCKS * BLOCK, BLOCK):
        block = events[start : start + BLOCK]
        times["anabranch"].append(_measure(lambda user: ours.top_k(user, K), ours.learn_one, block))
        times["anabranch.Blend"].append(_measure(lambda user: blend.top_k(user, K), blend.learn_one, block))
        times["river.BiasedMF"].append(
            _measure(
                lambda user: river.rank(user, catalogue)[:K], lambda user, item: river.learn_one(user, item, 1.0), block
            )
        )
    rows = {name: np.array(blocks) for name, blocks in times.items()}
    ratios = rows["river.BiasedMF"].sum(axis=1) / rows["anabranch"].sum(axis=1)
    ratio = {"median": round(float(np.median(ratios)), 1), "least": round(float(ratios.min()), 1)}
    ratio["most"] = round(float(ratios.max()), 1)
    figures = {
        "items": len(ids),
        "events": BLOCKS * BLOCK,
        "blocks": BLOCKS,
        "clock": "processor time of the thread",
        "rows": {name: _row(blocks) for name, blocks in rows.items()},
        "ratio": ratio,
    }
    path = write_result("stream_learner", figures, ("river", "numpy", "numba"))
    print(
        f"processor time an event: ours {_row(rows['anabranch'])['both_cpu_us']} us, "
        f"the blend {_row(rows['anabranch.Blend'])['both_cpu_us']} us, "
        f"river {_row(rows['river.BiasedMF'])['both_cpu_us']} us; "
        f"{ratio['median']} times ({ratio['least']} to {ratio['most']} over {BLOCKS} blocks); {path.name}"
    )


if __name__ == "__main__":
    main()
