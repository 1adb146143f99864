"""Quix Streams feeding river, for `stream_worker.py`; run by the Python of an environment of its own.

Prints one line of JSON: records, wall seconds and processor seconds of the process.
"""

import json
import sys
import tempfile
import time

from quixstreams import Application
from river import optim, reco


def main(servers: str, topic: str, group: str, events: int, factors: int, every: int) -> None:
    """Consume and learn `events` records, their offsets committed every so many."""
    learner = reco.BiasedMF(
        n_factors=factors, latent_initializer=optim.initializers.Normal(mu=0.0, sigma=0.1, seed=0), seed=0
    )
    done = 0

    def learn(value: dict[str, object]) -> None:
        nonlocal done
        learner.learn_one(user=value["user_id"], item=value["item_id"], y=1.0)
        done += 1

    app = Application(
        broker_address=servers,
        consumer_group=group,
        auto_offset_reset="earliest",
        commit_every=every,
        loglevel="ERROR",
        state_dir=tempfile.mkdtemp(prefix="quix-"),  # its default is a folder where one happens to be
    )
    app.dataframe(app.topic(topic, value_deserializer="json")).update(learn)
    wall, cpu = time.perf_counter(), time.process_time()
    app.run(count=events, timeout=60.0)
    print(json.dumps([done, time.perf_counter() - wall, time.process_time() - cpu]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], *(int(each) for each in sys.argv[4:7]))
