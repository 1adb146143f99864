"""A peer behind the same HTTP server: ``python _serve_peer.py KIND SOCKET CLICKS ITEMS FACTORS``.

CLICKS is an .npz with `users` and `items`, row numbers. It answers ``{"user_id": "user 7", "k": 10, ...}``.
"""

import json
import socket
import sys
import warnings
from collections.abc import Callable

import numpy as np
from fastapi import FastAPI
from fastapi.responses import Response
from pydantic import BaseModel

from server.serving.run import pin_blas_threads, serve_until_stopped

Answer = Callable[[int, int], tuple[list[int], list[float]]]


class Ask(BaseModel):
    """The part of a question that a peer can answer."""

    user_id: str
    k: int = 10


def by_implicit(users: np.ndarray, items: np.ndarray, n_items: int, factors: int) -> Answer:
    """Answer as implicit's alternating least squares does: its own `recommend`, liked items left out."""
    from implicit.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix

    ones = np.ones(len(users), dtype=np.float32)
    likes = csr_matrix((ones, (users, items)), shape=(int(users.max()) + 1, n_items))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AlternatingLeastSquares(factors=factors, iterations=2, num_threads=1, random_state=0)
        model.fit(likes, show_progress=False)

    def answer(user: int, k: int) -> tuple[list[int], list[float]]:
        rows, scores = model.recommend(user, likes[user], N=k, filter_already_liked_items=True)
        return rows.tolist(), scores.tolist()

    return answer


def by_river(users: np.ndarray, items: np.ndarray, n_items: int, factors: int) -> Answer:
    """Answer as river's BiasedMF does: its own `rank` over the items that the user has not liked."""
    from river import optim, reco

    model = reco.BiasedMF(
        n_factors=factors, latent_initializer=optim.initializers.Normal(mu=0.0, sigma=0.1, seed=0), seed=0
    )
    liked: dict[int, set[int]] = {}
    for user, item in zip(users.tolist(), items.tolist(), strict=True):
        model.learn_one(user=user, item=item, y=1.0)
        liked.setdefault(user, set()).add(item)

    def answer(user: int, k: int) -> tuple[list[int], list[float]]:
        seen = liked.get(user, set())
        best = list(model.rank(user=user, items=[item for item in range(n_items) if item not in seen]))[:k]
        return best, [float(model.predict_one(user=user, item=item)) for item in best]

    return answer


def by_nothing(users: np.ndarray, items: np.ndarray, n_items: int, factors: int) -> Answer:
    """Answer the first items, whoever asks: the control, which tells what server, machine and load make of it."""
    return lambda user, k: (list(range(k)), [0.0] * k)


def main() -> None:
    """Serve until SIGTERM."""
    kind, handle, clicks, n_items, factors = sys.argv[1:]
    pin_blas_threads()
    with np.load(clicks) as held:
        users, items = held["users"], held["items"]
    answer = {"implicit": by_implicit, "river": by_river, "nothing": by_nothing}[kind](
        users, items, int(n_items), int(factors)
    )
    app = FastAPI(openapi_url=None)

    @app.post("/v1/recommendations")
    async def recommendations(ask: Ask) -> Response:
        rows, scores = answer(int(ask.user_id.removeprefix("user ")), ask.k)
        shown = [{"item_id": f"item {row}", "score": score} for row, score in zip(rows, scores, strict=True)]
        return Response(json.dumps({"items": shown}), media_type="application/json")

    def ready() -> None:
        print("ready", flush=True)

    serve_until_stopped(app, socket.socket(fileno=int(handle)), on_start=ready)


if __name__ == "__main__":
    main()
