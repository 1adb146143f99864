"""Running the service: uvicorn on a socket that listens already, in this thread or in another."""

import asyncio
import gc
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI
from threadpoolctl import threadpool_limits
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from common.errors import ServiceError
from server.serving.fair_accept import FairAcceptor, Tally
from server.serving.listening import BACKLOG, GRACE_SECONDS, bind, url_of
from server.serving.problems import problem

GIVES_WAY_S = 0.0005
"""A thread that follows the topic or takes up a version lets an answer go on after so long, not Python's 5 ms."""


def pin_blas_threads() -> None:
    """Let numpy's matrix products use one thread in this process.

    A request is one small product; waking more threads costs more than they gain, and they would fight over the cores
    with the other requests.
    """
    threadpool_limits(limits=1, user_api="blas")


class _Protocol(HttpToolsProtocol):
    """httptools' protocol, except that what it cannot read, an unknown method too, is answered as a problem."""

    tally: Tally | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.tally is not None:
            self.tally.closed()

    def send_400_response(self, msg: str) -> None:
        refused = problem(
            400,
            "malformed",
            "the request cannot be read as HTTP; expected HTTP/1.1 with a method that it names;"
            " to mend it: GET /openapi.json says what can be asked",
            headers={"Connection": "close"},
        )
        head = b"".join(b"%s: %s\r\n" % pair for pair in refused.raw_headers)
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n%s\r\n%s" % (head, refused.body))
        self.transport.close()


class _Server(uvicorn.Server):
    """uvicorn, except that a signal stops it and is then done with, so the process ends with 0."""

    stopped_by: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
    on_start: Callable[[], None] | None = None
    tally: Tally | None = None
    acceptors: tuple[FairAcceptor, ...] = ()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        tally = self.tally
        await super().startup(sockets if tally is None else [])
        if tally is not None:
            made = partial(self._shared_protocol, tally)
            self.acceptors = tuple(FairAcceptor(each, tally, made) for each in sockets or ())
        if self.on_start is not None:
            self.on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for each in self.acceptors:
            each.close()
        await super().shutdown(sockets)

    def _shared_protocol(self, tally: Tally) -> asyncio.Protocol:
        made = _Protocol(self.config, self.server_state, self.lifespan.state)
        made.tally = tally
        return made

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._stop) for number in self.stopped_by}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        # a second signal does not wait for requests under way
        self.force_exit = self.should_exit
        self.should_exit = True


def _server(app: FastAPI) -> _Server:
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        loop="asyncio",
        backlog=BACKLOG,
        http=_Protocol,
        ws="none",
    )
    return _Server(config)


def serve_until_stopped(
    app: FastAPI,
    listener: socket.socket,
    *,
    stopped_by: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM),
    on_start: Callable[[], None] | None = None,
    tally: Tally | None = None,
) -> None:
    """Serve on the socket until a signal, then answer what is under way, and close it.

    Parameters
    ----------
    on_start
        Called once questions are answered.
    tally
        Of the connections of all processes that share the socket; None for one alone.
    """
    server = _server(app)
    server.stopped_by, server.on_start, server.tally = stopped_by, on_start, tally
    # what was loaded stays: a full collection that looks through all of it would hold up the answers
    gc.collect()
    gc.freeze()
    before = sys.getswitchinterval()
    sys.setswitchinterval(GIVES_WAY_S)
    try:
        with listener:
            server.run(sockets=[listener])
    finally:
        sys.setswitchinterval(before)
        gc.unfreeze()


@dataclass(frozen=True, slots=True)
class RunningService:
    """A service that runs in a thread.

    Parameters
    ----------
    url
        Where it answers.
    """

    url: str


@contextmanager
def serve_in_thread(
    app: FastAPI, host: str = "127.0.0.1", port: int = 0, *, seconds: float = 30.0
) -> Iterator[RunningService]:
    """Serve in a thread while the block runs.

    Parameters
    ----------
    port
        0 takes a free one.
    seconds
        Bound on starting, and again on stopping.

    Raises
    ------
    PortInUse
        When the port is taken.
    ServiceError
        When it does not start in time.
    """
    with bind(host, port) as listener:
        server = _server(app)
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listener]}, name="anabranch-serve", daemon=True
        )
        thread.start()
        try:
            deadline = time.monotonic() + seconds
            while not server.started:
                if not thread.is_alive() or time.monotonic() > deadline:
                    raise ServiceError(f"the service did not start within {seconds:g} seconds")
                time.sleep(0.005)
            yield RunningService(url_of(listener))
        finally:
            server.should_exit = True
            thread.join(timeout=seconds)
