"""Who may ask: keys, scopes, rates, and the time and room that one request gets. Pure ASGI, before any route."""

import asyncio
import ipaddress
import math
from collections.abc import Sequence
from functools import lru_cache

from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Connection

from common.errors import ServiceError
from server.serving.keys import KeyFile, Scope
from server.serving.limits import Limits, TokenBuckets
from server.serving.problems import RETRY_AFTER_SECONDS, problem

OPEN = frozenset({"/", "/healthz", "/readyz"})
"""Answered without a key: a probe and a browser have none, and they say nothing about anybody."""
_ALWAYS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
_SCHEME = "bearer "


def scope_of(method: str, path: str) -> Scope:
    """Return the scope that a request needs."""
    if path == "/metrics":
        return "admin"
    return "write" if path == "/v1/events" else "read"


@lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Tell whether a Host header, with or without a port, names this machine and no other."""
    name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class Access:
    """Lets a request in, or answers 401, 403 or 429.

    Without keys only requests to this machine's own names are let in: a web page whose name was pointed at loopback
    (DNS rebinding) shows another Host.

    Parameters
    ----------
    app
        What is behind.
    keys
        None asks for no key.
    buckets
        None takes any rate.
    """

    def __init__(self, app: ASGIApp, keys: KeyFile | None, buckets: TokenBuckets | None) -> None:
        self._app, self._keys, self._buckets = app, keys, buckets

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        """Hand on, or refuse."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_ALWAYS]
            await send(message)

        refused = None if scope["path"] in OPEN else self._refusal(scope)
        await (self._app if refused is None else refused)(scope, receive, marked)

    def _refusal(self, scope: Connection) -> ASGIApp | None:
        if self._keys is None:
            if not is_loopback(_header(scope, b"host")):
                return problem(
                    403,
                    "foreign-host",
                    "the request's Host is no name of this machine; expected localhost or a loopback address;"
                    " to mend it: ask at http://127.0.0.1, or run the service with --keys",
                )
            return self._too_fast("anybody")
        given = _header(scope, b"authorization")
        if given[: len(_SCHEME)].lower() != _SCHEME:
            return _unauthorized("no API key; expected the header Authorization: Bearer KEY; to mend it: send a key")
        try:
            key = self._keys.holder(given[len(_SCHEME) :].strip())
        except ServiceError:
            # the file's name and fault are for the log of the operator, not for callers
            return problem(
                503,
                "unavailable",
                "the service cannot read its keys; nobody is let in until its operator mends that",
                headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
            )
        if key is None:
            return _unauthorized("an API key that is unknown or revoked; expected a good one; to mend it: ask for one")
        needed = scope_of(scope["method"], scope["path"])
        if not key.allows(needed):
            return problem(
                403,
                "scope",
                f"key {key.key_id} has the scopes {', '.join(key.scopes)}; expected {needed};"
                " to mend it: use a key that has it",
            )
        return self._too_fast(key.key_id)

    def _too_fast(self, caller: str) -> ASGIApp | None:
        wait = 0.0 if self._buckets is None else self._buckets.take(caller)
        if not wait:
            return None
        return problem(
            429,
            "too-many-requests",
            f"more requests than this key may send; expected a pause; to mend it: wait {wait:.2f} seconds",
            headers={"Retry-After": str(math.ceil(wait))},
        )


def _header(scope: Connection, name: bytes) -> str:
    """Return the first header of a name in lower case, or nothing."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return ""


def _unauthorized(detail: str) -> ASGIApp:
    return problem(401, "unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})


class Patience:
    """Answers 503 when too much is under way, or when an answer takes too long.

    Parameters
    ----------
    app
        What is behind.
    limits
        Its `timeout_s` and `at_once` are used.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits
        self._under_way = 0

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        """Hand on, in bounded time."""
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        if self._under_way >= self._limits.at_once:
            detail = f"{self._under_way} requests are under way; expected fewer; to mend it: ask again later"
            await _busy("busy", detail)(scope, receive, send)
            return
        self._under_way += 1
        try:
            await self._in_time(scope, receive, send)
        finally:
            self._under_way -= 1

    async def _in_time(self, scope: Connection, receive: Receive, send: Send) -> None:
        started = late = False
        refusal: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()

        async def until_late(message: Message) -> None:
            nonlocal started
            if not late:
                started = True
                await send(message)

        async def answer(app: ASGIApp) -> None:
            await app(scope, receive, send)

        def refuse() -> None:
            nonlocal late, refusal
            if started:
                return
            late = True
            detail = (
                f"no answer within {self._limits.timeout_s:g} seconds; to mend it: ask again later, or for less at once"
            )
            # what is still being sent is not waited for, so the connection cannot be used again
            refusal = loop.create_task(answer(_busy("timeout", detail, Connection="close")))

        # a thread cannot be stopped, so the work is left to end by itself while the caller has an answer
        timer = loop.call_later(self._limits.timeout_s, refuse)
        try:
            await self._app(scope, receive, until_late)
        finally:
            timer.cancel()
            if refusal is not None:
                await refusal


def _busy(kind: str, detail: str, **headers: str) -> ASGIApp:
    return problem(503, kind, detail, headers={"Retry-After": str(RETRY_AFTER_SECONDS), **headers})


def checked_origins(origins: Sequence[str]) -> list[str]:
    """Return the origins whose pages may ask from a browser.

    Raises
    ------
    ServiceError
        When one is a wildcard: a page anywhere could then use a key it got hold of.
    """
    bad = [origin for origin in origins if not origin.startswith(("http://", "https://")) or "*" in origin]
    if bad:
        raise ServiceError(f"origin {bad[0]!r}", expected="https://shop.example, one for each --cors-origin")
    return list(origins)
