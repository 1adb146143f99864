"""Claim: `PointwiseMF` predicts ratings as well as river's `BiasedMF` and learns one in no more time.

Both take MovieLens-100K in the order of time, predict each rating (cut to 1 to 5) and then learn it, with the settings
of river's own example. Rows start at random, each from its own source, so the errors are equal but for chance; three
seeds show how much that is. Time is the thread's processor time, in blocks of ratings that take turns.
"""

import time
from typing import Protocol

import numpy as np
from _record import write_result
from river import optim, reco

from common.datasets.registry import load_dataset
from stream.learner.pointwise import PointwiseMF

SEEDS = (0, 1, 2)
BLOCK = 5_000
Ratings = list[tuple[str, str, float]]


class Model(Protocol):
    """What both have."""

    def predict_one(self, user: str, item: str) -> float:
        """Return the rating that is expected."""
        ...

    def learn_one(self, user: str, item: str, y: float) -> None:
        """Learn a rating."""
        ...


def river_model(seed: int) -> Model:
    """Return river's, with the settings of its example."""
    model: Model = reco.BiasedMF(
        n_factors=10,
        bias_optimizer=optim.SGD(0.025),
        latent_optimizer=optim.SGD(0.05),
        latent_initializer=optim.initializers.Normal(mu=0.0, sigma=0.1, seed=seed),
    )
    return model


def block(model: Model, ratings: Ratings) -> tuple[float, float, float]:
    """Predict and learn; return the sum of squared errors, and microseconds a prediction and a lesson."""
    squares, predicting, learning = 0.0, 0, 0
    for user, item, rating in ratings:
        start = time.thread_time_ns()
        expected = model.predict_one(user, item)
        middle = time.thread_time_ns()
        model.learn_one(user, item, rating)
        predicting, learning = predicting + middle - start, learning + time.thread_time_ns() - middle
        squares += (min(5.0, max(1.0, expected)) - rating) ** 2
    return squares, predicting / len(ratings) / 1e3, learning / len(ratings) / 1e3


def main() -> None:
    """Measure, write, and print one line."""
    events = load_dataset("movielens-100k", seed=0, notice=print).interactions
    ratings = [(event.user_id, event.item_id, float(event.value)) for event in events if event.value is not None]
    PointwiseMF().learn_one("compiled", "before", 1.0)
    PointwiseMF().predict_one("the", "clock starts")
    errors: dict[str, list[float]] = {"anabranch.PointwiseMF": [], "river.BiasedMF": []}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in errors}
    for seed in SEEDS:
        models = {"anabranch.PointwiseMF": PointwiseMF(seed=seed), "river.BiasedMF": river_model(seed)}
        squares = dict.fromkeys(models, 0.0)
        for start in range(0, len(ratings), BLOCK):
            for name, model in models.items():
                found, *microseconds = block(model, ratings[start : start + BLOCK])
                squares[name] += found
                times[name].append((microseconds[0], microseconds[1]))
        for name, total in squares.items():
            errors[name].append(round(float(np.sqrt(total / len(ratings))), 4))
    predicted, learned = ({name: np.array(found)[:, column] for name, found in times.items()} for column in range(2))
    ratio = learned["river.BiasedMF"] / learned["anabranch.PointwiseMF"]
    figures = {
        "data": "movielens-100k",
        "ratings": len(ratings),
        "seeds": list(SEEDS),
        "rmse": errors,
        "predict_cpu_us": {name: round(float(np.median(found)), 2) for name, found in predicted.items()},
        "learn_cpu_us": {name: round(float(np.median(found)), 2) for name, found in learned.items()},
        "learn_times_river": {
            "median": round(float(np.median(ratio)), 2),
            "least": round(float(ratio.min()), 2),
            "most": round(float(ratio.max()), 2),
        },
    }
    path = write_result("stream_ratings", figures, ("river", "numpy", "numba"))
    print(f"RMSE {errors}; a lesson {figures['learn_cpu_us']} us, {figures['learn_times_river']}; {path.name}")


if __name__ == "__main__":
    main()
