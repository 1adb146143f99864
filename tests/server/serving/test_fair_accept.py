"""Who shares a socket has as many connections as the others, whoever wakes first; one that is gone holds up nobody."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from server.serving import fair_accept
from server.serving.fair_accept import FairAcceptor, Tally
from server.serving.listening import bind


class _Greeter(asyncio.Protocol):
    """Says a number, and tells the tally when it is left."""

    def __init__(self, number: int, tally: Tally) -> None:
        self._number, self._tally = number, tally

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(bytes([self._number]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._tally.closed()


async def _callers(listener: socket.socket, count: int) -> list[tuple[int, asyncio.StreamWriter]]:
    """Connect so many at once; return who answered each."""
    host, port = listener.getsockname()
    opened = await asyncio.gather(*(asyncio.open_connection(host, port) for _ in range(count)))
    return [((await reader.readexactly(1))[0], writer) for reader, writer in opened]


@asynccontextmanager
async def _accepting(listener: socket.socket, path: Path, numbers: Sequence[int]) -> AsyncIterator[None]:
    """Accept as these, each with a tally and a socket of its own."""
    with ExitStack() as stack:
        for number in numbers:
            tally, own = Tally(path, number), stack.enter_context(listener.dup())
            acceptor = FairAcceptor(own, tally, partial(_Greeter, number, tally))
            stack.callback(acceptor.close)
        yield


async def _leave(answered: list[tuple[int, asyncio.StreamWriter]]) -> None:
    for _, writer in answered:
        writer.close()
        await writer.wait_closed()


def _shares(answered: list[tuple[int, asyncio.StreamWriter]]) -> list[int]:
    numbers = [number for number, _ in answered]
    return [numbers.count(number) for number in range(3)]


async def _until_open(path: Path, counts: list[int]) -> None:
    """Wait until each has so many connections."""

    async def look() -> None:
        while memoryview(path.read_bytes()).cast("q").tolist() != counts:
            await asyncio.sleep(0.01)

    await asyncio.wait_for(look(), 20.0)


def test_connections_are_shared_out_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # so long may this process wait for a core without another taking what is left to one
    monkeypatch.setattr(fair_accept, "LEFT_TO_OTHERS_S", 0.2)
    Tally.new(tmp_path / "tally", 3)

    async def run() -> None:
        path = tmp_path / "tally"
        with bind("127.0.0.1", 0) as listener:
            async with _accepting(listener, path, range(3)):
                answered = await asyncio.wait_for(_callers(listener, 30), 20.0)
                assert _shares(answered) == [10, 10, 10]
                # those of one are closed: it gets the next ones
                await _leave([each for each in answered if each[0] == 1])
                await _until_open(path, [10, 0, 10])
                again = await asyncio.wait_for(_callers(listener, 9), 20.0)
                assert _shares(again) == [0, 9, 0]
                await _leave([*again, *(each for each in answered if each[0] != 1)])
                await _until_open(path, [0, 0, 0])

    asyncio.run(run())


def test_one_that_is_gone_holds_up_nobody(tmp_path: Path) -> None:
    Tally.new(tmp_path / "tally", 3)

    async def run() -> None:
        with bind("127.0.0.1", 0) as listener:
            # 1 and 2 never accept anything
            async with _accepting(listener, tmp_path / "tally", [0]):
                answered = await asyncio.wait_for(_callers(listener, 12), 20.0)
                assert _shares(answered) == [12, 0, 0]
                await _leave(answered)
                await _until_open(tmp_path / "tally", [0, 0, 0])

    asyncio.run(run())


def test_who_takes_a_place_begins_with_none(tmp_path: Path) -> None:
    Tally.new(tmp_path / "tally", 2)
    first, other = Tally(tmp_path / "tally", 0), Tally(tmp_path / "tally", 1)
    first.opened()
    assert first.has_more()
    assert not other.has_more()
    assert not Tally(tmp_path / "tally", 0).has_more()


class _Full(socket.socket):
    """A listening socket of a process that can open no more files, for its first two calls."""

    asked = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.asked += 1
        if self.asked <= 2:
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def test_where_no_file_can_be_opened_it_waits_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair_accept, "NO_ROOM_S", 0.05)
    Tally.new(tmp_path / "tally", 1)

    async def run() -> None:
        tally = Tally(tmp_path / "tally", 0)
        with bind("127.0.0.1", 0) as listener, _Full(fileno=listener.dup().detach()) as full:
            acceptor = FairAcceptor(full, tally, partial(_Greeter, 7, tally))
            answered = await asyncio.wait_for(_callers(listener, 1), 20.0)
            # no more than were refused, the one that was not, and perhaps one more look
            assert full.asked <= 4
            assert [number for number, _ in answered] == [7]
            await _leave(answered)
            await _until_open(tmp_path / "tally", [0])
            acceptor.close()

    asyncio.run(run())
