"""Connections off a socket that several processes share: whoever has the fewest takes the next.

A connection stays with the process that took it, and clients keep theirs. Whoever woke first would take most of those
that come in together, and answer most of the questions, while another has nothing to do.

The processes tell one another how many connections each has open, in a small mapped file. One that has more than
another leaves a new connection to it for a moment, and takes it then, if it is still there: the other may be gone.
"""

import asyncio
import logging
import mmap
import socket
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)
LEFT_TO_OTHERS_S = 0.005
"""So long is a connection left to a process that has fewer."""
NO_ROOM_S = 1.0
"""So long nothing is taken where no file can be opened any more."""
_NUMBER = 8


class Tally:
    """How many connections each process has open.

    Parameters
    ----------
    path
        The mapped file; made by `new`.
    place
        Of this process, from 0; whoever had it before is gone, and its connections with it.

    Raises
    ------
    OSError
        When it cannot be mapped.
    """

    def __init__(self, path: Path, place: int) -> None:
        with path.open("rb+") as file:
            self._counts = memoryview(mmap.mmap(file.fileno(), 0)).cast("q")
        self._place = place
        self._counts[place] = 0

    @staticmethod
    def new(path: Path, processes: int) -> None:
        """Make the file."""
        path.write_bytes(bytes(_NUMBER * processes))

    def opened(self) -> None:
        """Count one more."""
        self._counts[self._place] += 1

    def closed(self) -> None:
        """Count one less."""
        self._counts[self._place] -= 1

    def has_more(self) -> bool:
        """Tell whether another process has fewer."""
        return self._counts[self._place] > min(self._counts)


class FairAcceptor:
    """Takes connections off a listening socket, in an event loop.

    Parameters
    ----------
    listener
        Shared with the other processes.
    tally
        What each has open.
    protocol
        Makes what handles a connection; it is closed by telling the tally.
    """

    def __init__(self, listener: socket.socket, tally: Tally, protocol: Callable[[], asyncio.Protocol]) -> None:
        self._listener, self._tally, self._protocol = listener, tally, protocol
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._later: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        self._watch()

    def close(self) -> None:
        """Take no more."""
        self._loop.remove_reader(self._listener)
        if self._later is not None:
            self._later.cancel()

    def _watch(self) -> None:
        self._later = None
        self._loop.add_reader(self._listener, self._ready)

    def _ready(self) -> None:
        if self._tally.has_more():
            self._pause(LEFT_TO_OTHERS_S, self._take_late)
        elif not self._take():
            self._pause(NO_ROOM_S, self._watch)

    def _take_late(self) -> None:
        if self._take():
            self._watch()
        else:
            self._pause(NO_ROOM_S, self._watch)

    def _pause(self, seconds: float, then: Callable[[], None]) -> None:
        self._loop.remove_reader(self._listener)
        self._later = self._loop.call_later(seconds, then)

    def _take(self) -> bool:
        """Take a connection, if there still is one; return False where there is no room for any."""
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):  # another has it, or the caller is gone
            return True
        except OSError as error:  # too many open files, as a rule: asked again at once, it would take all of a core
            log.warning("no connection can be taken: %s", error)
            return False
        self._tally.opened()
        task = self._loop.create_task(self._handle(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _handle(self, connection: socket.socket) -> None:
        made = self._protocol()
        try:
            await self._loop.connect_accepted_socket(lambda: made, connection)
        except OSError:  # the caller is gone already
            self._tally.closed()
            connection.close()
