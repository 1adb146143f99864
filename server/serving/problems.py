"""Every error of the HTTP edge as RFC 9457 problem JSON, without echoing what was sent."""

import json
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.errors import AnabranchError, NoModel, UsageError
from server.serving.recommend import UnknownItem

MAX_BODY = 1_048_576
"""Bytes; a question is a few kilobytes."""
RETRY_AFTER_SECONDS = 5
PROBLEM_TYPE = "application/problem+json"


class FieldProblem(BaseModel):
    """One thing wrong with the request."""

    field: str = Field(description="Where: body.k, query.k, path.user_id")
    detail: str


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str = Field(description="URN that names the kind of problem", examples=["urn:anabranch:problem:no-model"])
    title: str = Field(examples=["Service Unavailable"])
    status: int = Field(examples=[503])
    detail: str = Field(description="One line for people")
    errors: list[FieldProblem] = Field(default_factory=list)


class ProblemResponse(Response):
    """Problem JSON; the media type is what the OpenAPI shows."""

    media_type = PROBLEM_TYPE


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI entries of these statuses."""
    schema = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": schema} for status in statuses}


def problem(
    status: int, kind: str, detail: str, errors: Sequence[FieldProblem] = (), headers: dict[str, str] | None = None
) -> Response:
    """Return a problem response."""
    body = Problem(
        type=f"urn:anabranch:problem:{kind}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        errors=list(errors),
    )
    # ASCII escapes: a detail may quote a path with half a surrogate pair, which UTF-8 cannot hold
    return ProblemResponse(json.dumps(body.model_dump()).encode("ascii"), status_code=status, headers=headers)


def _of_anabranch(request: Request, error: Exception) -> Response:
    if isinstance(error, UnknownItem):
        return problem(404, "unknown-item", str(error))
    if isinstance(error, UsageError):
        return problem(422, "invalid", str(error))
    kind = "no-model" if isinstance(error, NoModel) else "unavailable"
    return problem(503, kind, str(error), headers={"Retry-After": str(RETRY_AFTER_SECONDS)})


def _of_http(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = str(error.detail) if isinstance(error, HTTPException) else ""
    kinds = {400: "malformed", 404: "no-such-path", 405: "method-not-allowed", 413: "too-large"}
    headers = dict(error.headers) if isinstance(error, HTTPException) and error.headers else None
    return problem(status, kinds.get(status, "http"), detail or HTTPStatus(status).phrase, headers=headers)


def _of_validation(request: Request, error: Exception) -> Response:
    found = error.errors() if isinstance(error, RequestValidationError) else []
    errors = [FieldProblem(field=".".join(str(part) for part in one["loc"]), detail=str(one["msg"])) for one in found]
    if any(one["type"] == "json_invalid" for one in found):
        return problem(400, "malformed", "the body is not JSON", errors)
    first = f"{errors[0].field}: {errors[0].detail}" if errors else "the request is not valid"
    return problem(422, "invalid", first, errors)


def _of_surprise(request: Request, error: Exception) -> Response:
    return problem(500, "internal", "the service failed on this request; its log says where")


def install(app: FastAPI) -> None:
    """Let the app answer every error as a problem, and refuse bodies over `MAX_BODY`."""
    app.add_exception_handler(AnabranchError, _of_anabranch)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(RequestValidationError, _of_validation)
    app.add_exception_handler(Exception, _of_surprise)
    app.add_middleware(BodyLimit, limit=MAX_BODY)


class BodyLimit:
    """Answers 413 as soon as a body is longer than `limit` bytes, whatever its headers said.

    Parameters
    ----------
    app
        What is behind.
    limit
        Bytes.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body up to the limit, then hand on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = await self._read(scope, receive)
        if body is None:
            detail = f"the body is longer than {self._limit} bytes"
            # what is still being sent is not read, so the connection cannot be used again
            refused = problem(413, "too-large", detail, headers={"Connection": "close"})
            await refused(scope, receive, send)
            return
        await self._app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared[:20]) > self._limit:
            return None
        parts: list[bytes] = []
        length, more = 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                break
            parts.append(message.get("body", b""))
            length += len(parts[-1])
            if length > self._limit:
                return None
            more = message.get("more_body", False)
        return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
