"""No claim, a curve: what it costs that learners of 8 partitions hear of each other now and then, and not at once.

MovieLens-100K in the order of time, each user's clicks to one of 8 learners; after every so many events of all of them
each takes up what the others learned about items, as `anabranch stream learn --scale-out` does at its checkpoints. The
first fifth is only learned; then each like of an item that is new to the user is predicted first, among all items.
Beside it one learner that learns everything.
"""

import argparse
import time
from collections.abc import Sequence

from _record import write_result

from common.datasets.registry import load_dataset
from common.events import Interaction
from common.settings import feedback_of
from stream.kafka_log import partition_of
from stream.learner.blend import Blend
from stream.learner.mf import MF
from stream.learner.parts import Arrays
from stream.learner.sharing import Sharing

PARTITIONS = 8
EVERY = (1_000, 2_000, 5_000)
WARM = 0.2


def recall_of(kind: str, items: tuple[str, ...], events: Sequence[Interaction], parts: int, every: int) -> float:
    """Return recall@10 of so many learners that share what they learned every so many events."""
    make = {"mf": MF, "blend": Blend}[kind]
    learners, sharing = [make() for _ in range(parts)], Sharing(make())
    for learner in learners:
        learner.add_items(items)
    owns = [learner.state_arrays() for learner in learners]
    total: Arrays | None = None
    hits = tested = 0
    for number, event in enumerate(events, 1):
        feedback, learner = feedback_of(event), learners[partition_of(event.user_id, parts)]
        row = learner.item_row(event.item_id)
        if feedback.sign > 0 and number > WARM * len(events) and row not in learner.seen_rows(event.user_id):
            tested += 1
            hits += row is not None and learner.rank_of(event.user_id, row, 10)[0] <= 10
        if feedback.sign:
            learner.learn_one(event.user_id, event.item_id, feedback.sign * feedback.weight)
        if parts > 1 and number % every == 0:
            now = [each.state_arrays() for each in learners]
            owns = [
                state if total is None else sharing.own(own, total, state) for own, state in zip(owns, now, strict=True)
            ]
            total = sharing.total(owns)
            for each, own in zip(learners, owns, strict=True):
                each.load_state(sharing.together(total, [own], each.events))
    return hits / tested


def main() -> None:
    """Measure, write, and print a line a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--learner", choices=["mf", "blend"], default="mf")
    parser.add_argument("--events", type=int, default=100_000)
    chosen = parser.parse_args()
    data = load_dataset("movielens-100k", seed=0, notice=print)
    events = data.interactions[: chosen.events]
    rows = {}
    for parts, every in ((1, 0), *((PARTITIONS, every) for every in EVERY)):
        began = time.process_time()
        recall = recall_of(chosen.learner, data.catalogue.ids, events, parts, every)
        name = "one learner" if parts == 1 else f"{parts} learners, every {every} events"
        rows[name] = round(recall, 4)
        print(f"{chosen.learner}, {name}: recall@10 {recall:.4f} ({time.process_time() - began:.0f} s)", flush=True)
    name = "stream_sharing" if chosen.learner == "mf" else f"stream_sharing_{chosen.learner}"
    figures = {"data": "movielens-100k", "events": len(events), "learner": chosen.learner, "recall@10": rows}
    print(write_result(name, figures, ("numpy", "numba")).name)


if __name__ == "__main__":
    main()
