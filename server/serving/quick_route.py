"""A short way past the framework for questions that are in order; all others go the framework's own way."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from fastapi import Response
from pydantic import ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.errors import AnabranchError
from server.serving.problems import replayed, told_of
from server.serving.schemas import RecommendationRequest

Endpoint = Callable[[RecommendationRequest], Awaitable[Response]]
_JSON = (b"content-type", b"application/json")


class QuickRoute:
    """Answers what is posted to one path; pure ASGI, behind everything that may refuse a request.

    The framework goes through its routes, headers, dependencies and the endpoint's signature anew for each request,
    which takes as long as many an answer. A body that is JSON by its header and fits the schema goes to the endpoint at
    once. Whatever else comes, the framework gets it unchanged: it finds the fault and words it as everywhere.

    Parameters
    ----------
    app
        The framework's app.
    route
        What the framework would find for the path, with its `path`.
    endpoint
        What answers.
    """

    def __init__(self, app: ASGIApp, route: Any, endpoint: Endpoint) -> None:
        self._app, self._route, self._endpoint, self._path = app, route, endpoint, route.path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        if scope["type"] != "http" or scope["path"] != self._path or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if _JSON not in scope["headers"]:
            await self._app(scope, receive, send)
            return
        body = await _whole(receive)
        question = None if body is None else _in_order(body)
        if body is None or question is None:
            await self._app(scope, replayed(body or b"", receive), send)
            return
        scope["route"] = self._route
        try:
            answer = await self._endpoint(question)
        except AnabranchError as error:
            answer = told_of(error)
        await answer(scope, receive, send)


async def _whole(receive: Receive) -> bytes | None:
    """Return the body, which `server.serving.problems.BodyLimit` has read before; None for a caller that has gone."""
    message: Message = await receive()
    return message.get("body", b"") if message["type"] == "http.request" else None


def _in_order(body: bytes) -> RecommendationRequest | None:
    """Return the question of a body that is in order, None for any other."""
    try:
        return RecommendationRequest.model_validate(msgspec.json.decode(body))
    except (ValidationError, ValueError, RecursionError):
        return None
