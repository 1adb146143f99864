"""Several processes behind one socket: started, watched, replaced when one dies, and stopped together.

The parent serves nothing and reads nothing of the store. A child is told its settings over a pipe, says there when it
is ready, and drains when the pipe ends: so no child outlives its parent, however that died.
"""

import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import FrameType

from common.errors import ServiceError
from server.serving.listening import GRACE_SECONDS

log = logging.getLogger(__name__)
READY = b"ready"
LONG_ENOUGH_S = 10.0
"""A child that lived so long is replaced at once; one that died sooner after a pause that doubles."""
LONGEST_PAUSE_S = 30.0
_STARTED = (signal.SIGINT, signal.SIGTERM)

Start = Callable[[str, int], "subprocess.Popen[bytes]"]
"""Starts the child of a role, and hands down to it one end of a pipe, given by its file descriptor."""


@dataclass(slots=True)
class _Child:
    process: "subprocess.Popen[bytes]"
    link: Connection
    born: float
    ready: bool = False
    said: str = ""


@dataclass(slots=True)
class _Absent:
    due: float
    deaths: int


class Processes:
    """Keeps one child a role.

    Parameters
    ----------
    roles
        Names of the children, for logs.
    start
        Starts one.
    settings
        What each is told first.
    monotonic
        Seconds that never go back.
    """

    def __init__(
        self, roles: Sequence[str], start: Start, settings: bytes, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._roles, self._start_one, self._settings, self._monotonic = roles, start, settings, monotonic
        self._children: dict[str, _Child] = {}
        self._absent: dict[str, _Absent] = {}
        self._deaths = dict.fromkeys(roles, 0)
        self._signals = 0

    def run(self, on_ready: Callable[[Mapping[str, int]], None]) -> None:
        """Start all, call `on_ready` with their process ids once all are ready, and keep them until Ctrl-C or SIGTERM.

        Raises
        ------
        ServiceError
            When one ends before all were ready once: what is wrong with it is wrong with the next one too.
        """
        announced = False
        with self._signalled() as woken:
            try:
                for role in self._roles:
                    self._start(role)
                while not self._signals:
                    for role in self._told(woken):
                        self._bury(role, early=not announced)
                    if not announced and all(child.ready for child in self._children.values()):
                        announced = True
                        on_ready({role: child.process.pid for role, child in self._children.items()})
                    for role in [role for role, absent in self._absent.items() if absent.due <= self._monotonic()]:
                        self._start(role)
            finally:
                self._stop()

    @contextmanager
    def _signalled(self) -> Iterator[int]:
        """Count signals while the block runs; give what can be read once there was one."""
        reading, writing = os.pipe()

        def note(number: int, frame: FrameType | None) -> None:
            self._signals += 1
            os.write(writing, b"!")

        before = {}
        try:
            if threading.current_thread() is threading.main_thread():
                before = {number: signal.signal(number, note) for number in _STARTED}
            yield reading
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(reading)
            os.close(writing)

    def _start(self, role: str) -> None:
        self._absent.pop(role, None)
        ours, theirs = socket.socketpair()
        with theirs:
            process = self._start_one(role, theirs.fileno())
        link = Connection(ours.detach())
        self._children[role] = _Child(process, link, self._monotonic())
        try:
            link.send_bytes(self._settings)
        except OSError:
            log.debug("%s ended before it was told anything", role)  # its end of the pipe tells the rest

    def _told(self, woken: int) -> list[str]:
        """Wait until a child says something or ends, one is due, or there is a signal; return the roles that ended."""
        ended = []
        pause = min((absent.due - self._monotonic() for absent in self._absent.values()), default=None)
        roles = {child.link: role for role, child in self._children.items()}
        for link in wait([woken, *roles], None if pause is None else max(0.0, pause)):
            if not isinstance(link, Connection):
                continue
            child = self._children[roles[link]]
            try:
                said = link.recv_bytes()
            except (EOFError, OSError):
                ended.append(roles[link])
                continue
            child.ready |= said == READY
            child.said = "" if said == READY else said.decode(errors="replace")
        return ended

    def _bury(self, role: str, *, early: bool) -> None:
        """Take leave of a child that ended, and note when another one is due."""
        child = self._children.pop(role)
        child.link.close()
        code = _ended(child.process, GRACE_SECONDS)
        what = child.said or f"the process {role} ended with {code}"
        if early:
            raise ServiceError(what)
        short = self._monotonic() - child.born < LONG_ENOUGH_S
        self._deaths[role] = self._deaths[role] + 1 if short else 0
        pause = min(LONGEST_PAUSE_S, 2.0 ** (self._deaths[role] - 1)) if short else 0.0
        log.warning("%s; another one is started in %g seconds", what, pause)
        self._absent[role] = _Absent(self._monotonic() + pause, self._deaths[role])

    def _stop(self) -> None:
        """Let all drain; a second signal does not wait for requests under way, and none is left."""
        handled, deadline = self._signals, self._monotonic() + GRACE_SECONDS + 5.0
        for child in self._children.values():
            child.process.terminate()
        while any(child.process.poll() is None for child in self._children.values()):
            if self._monotonic() > deadline:
                break
            if self._signals > handled:
                handled = self._signals
                for child in self._children.values():
                    child.process.terminate()
            time.sleep(0.02)
        for child in self._children.values():
            _ended(child.process, 0.0)
            child.link.close()
        self._children.clear()


def _ended(process: "subprocess.Popen[bytes]", seconds: float) -> int:
    """Return the exit code of a process that is given so long to end."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


class ParentLink:
    """A child's end of the pipe.

    Parameters
    ----------
    handle
        Its file descriptor, as the parent named it.
    """

    def __init__(self, handle: int) -> None:
        self._link = Connection(handle)
        self.settings = self._link.recv_bytes()

    def ready(self) -> None:
        """Say that the child does its work from now on."""
        self._link.send_bytes(READY)

    def fail(self, text: str) -> None:
        """Say why the child cannot work."""
        self._link.send_bytes(text.encode(errors="replace"))

    def watch(self, gone: Callable[[], None]) -> None:
        """Call `gone`, in a thread, when the parent is no more."""

        def wait_for_the_end() -> None:
            try:
                self._link.recv_bytes()
            except (EOFError, OSError):
                gone()

        threading.Thread(target=wait_for_the_end, name="anabranch-parent", daemon=True).start()
