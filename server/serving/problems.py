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

from common.errors import AnabranchError, MalformedEvent, NoModel, StreamError, UsageError
from server.serving.recommend import UnknownItem

RETRY_AFTER_SECONDS = 5
PROBLEM_TYPE = "application/problem+json"
NO_MODEL = (
    "no model is published in the service's store yet; expected a version; to mend it: ask again later, or publish one"
    " (anabranch simulate)"
)
_NO_JSON = "the body is not JSON in UTF-8; expected one JSON object"
_SEE_OPENAPI = "to mend it: GET /openapi.json says what fits"
_LARGEST_SHOWN = 2**63


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


def told_of(error: Exception) -> Response:
    """Return the problem that an error of ours is to a caller."""
    if isinstance(error, UnknownItem):
        return problem(404, "unknown-item", str(error))
    if isinstance(error, UsageError | MalformedEvent):
        return problem(422, "invalid", str(error))
    later = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    if isinstance(error, NoModel):
        # not the error's own words: they name the store's folder
        return problem(503, "no-model", NO_MODEL, headers=later)
    kind = "no-broker" if isinstance(error, StreamError) else "unavailable"
    return problem(503, kind, str(error), headers=later)


def _of_anabranch(request: Request, error: Exception) -> Response:
    return told_of(error)


def _of_http(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = str(error.detail) if isinstance(error, HTTPException) else ""
    headers = dict(error.headers) if isinstance(error, HTTPException) and error.headers else None
    if status == HTTPStatus.NOT_FOUND:
        detail = f"no such path; {_SEE_OPENAPI}"
    elif status == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (headers or {}).get("allow") or (headers or {}).get("Allow") or "another one"
        detail = f"method {request.method[:20]} is not for this path; expected {allowed}; {_SEE_OPENAPI}"
    elif status == HTTPStatus.BAD_REQUEST:
        detail = f"{_NO_JSON}; {_SEE_OPENAPI}"
    kinds = {400: "malformed", 404: "no-such-path", 405: "method-not-allowed", 413: "too-large"}
    return problem(status, kinds.get(status, "http"), detail or HTTPStatus(status).phrase, headers=headers)


def _shown(value: object) -> str:
    """Return what was found, in a few words and without a text that was sent."""
    if isinstance(value, str):
        return f"a text of {len(value)} characters"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, int) and abs(value) > _LARGEST_SHOWN:
        return "a number beyond 64 bits"
    return repr(value) if isinstance(value, int | float | None) else "something else"


def _of_validation(request: Request, error: Exception) -> Response:
    found = error.errors() if isinstance(error, RequestValidationError) else []
    errors = [
        FieldProblem(
            field=".".join(str(part) for part in one["loc"]), detail=f"{one['msg']}; found {_shown(one.get('input'))}"
        )
        for one in found
    ]
    if any(one["type"] == "json_invalid" for one in found):
        return problem(400, "malformed", f"{_NO_JSON}; {_SEE_OPENAPI}", errors)
    first = f"{errors[0].field}: {errors[0].detail}" if errors else "the request is not valid"
    return problem(422, "invalid", f"{first}; {_SEE_OPENAPI}", errors)


def _of_surprise(request: Request, error: Exception) -> Response:
    return problem(500, "internal", "the service failed on this request; its log says where")


def install(app: FastAPI, max_body: int) -> None:
    """Let the app answer every error as a problem, and refuse bodies of more bytes than that."""
    app.add_exception_handler(AnabranchError, _of_anabranch)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(RequestValidationError, _of_validation)
    app.add_exception_handler(Exception, _of_surprise)
    app.add_middleware(BodyLimit, limit=max_body)


class _Gone(Exception):
    """The caller left, or was answered, before the body was there: half a body is no question."""


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
        try:
            body = await self._read(scope, receive)
        except _Gone:
            return
        if body is None:
            detail = f"the body is longer than {self._limit} bytes; to mend it: send a shorter one"
            # what is still being sent is not read, so the connection cannot be used again
            refused = problem(413, "too-large", detail, headers={"Connection": "close"})
            await refused(scope, receive, send)
            return
        await self._app(scope, replayed(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared[:20]) > self._limit:
            return None
        parts: list[bytes] = []
        length, more = 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise _Gone
            parts.append(message.get("body", b""))
            length += len(parts[-1])
            if length > self._limit:
                return None
            more = message.get("more_body", False)
        return b"".join(parts)


def replayed(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """Return what gives a body that was read once more, and then what comes after it."""
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
