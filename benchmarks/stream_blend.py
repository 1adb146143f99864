"""Claim: the blend scores all items and learns a click within 100 microseconds of processor time, on one thread.

On the likes of MovieLens-100K in the order of time: the user's scores of all 1,447 items, then the lesson, as in
`anabranch evaluate stream` but alone on the machine's caches. The ranking of the scores is not counted. The members
learn nothing from texts that are noise, and cost what they would with others.
"""

import time

import numpy as np
from _record import write_result

from common.datasets.registry import load_dataset
from common.settings import feedback_of
from stream.learner.blend import Blend

BLOCK = 2_500


def main() -> None:
    """Measure, write, and print one line."""
    events = load_dataset("movielens-100k", seed=0, notice=print).interactions
    likes = [event for event in events if feedback_of(event).sign > 0]
    items = tuple(dict.fromkeys(event.item_id for event in likes))
    blend = Blend(seed=0)
    blend.describe(items, np.random.default_rng(0).standard_normal((len(items), 384)))
    blocks = []
    for first in range(0, len(likes), BLOCK):
        part = likes[first : first + BLOCK]
        answering = learning = 0
        for event in part:
            start = time.thread_time_ns()
            blend.scores(event.user_id)
            middle = time.thread_time_ns()
            blend.learn_one(event.user_id, event.item_id)
            answering, learning = answering + middle - start, learning + time.thread_time_ns() - middle
        blocks.append((answering / len(part) / 1e3, learning / len(part) / 1e3))
    found = np.array(blocks[1:])  # the first compiles
    answer, learn = np.median(found, axis=0)
    both = found.sum(axis=1)
    figures = {
        "data": "movielens-100k",
        "likes": len(likes),
        "items": len(items),
        "clock": "processor time of the thread, medians over blocks",
        "answer_cpu_us": round(float(answer), 1),
        "learn_cpu_us": round(float(learn), 1),
        "both_cpu_us": round(float(np.median(both)), 1),
        "both_least": round(float(both.min()), 1),
        "both_most": round(float(both.max()), 1),
        "at_most_100": bool(np.median(both) <= 100.0),
    }
    path = write_result("stream_blend", figures, ("numpy", "numba"))
    print(
        f"{figures['both_cpu_us']} us an event ({figures['both_least']} to {figures['both_most']}): "
        f"{figures['answer_cpu_us']} scores, {figures['learn_cpu_us']} lesson; {path.name}"
    )


if __name__ == "__main__":
    main()
