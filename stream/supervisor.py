"""Runs one program and stops it when the parent is gone, however the parent went.

Started as a script, with the standard library alone: ``python -I supervisor.py PROGRAM ARGUMENT...``. Its stdin is a
pipe that the parent holds open; when that closes, or the parent is no longer the parent, the program is stopped. On
Linux the kernel also stops the program should the supervisor itself be killed.
"""

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable

GRACE_S = 3.0
LOOK_S = 0.25
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> Callable[[], None] | None:
    """Return what a Linux child runs before exec so that it dies with its parent; None elsewhere."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return ask


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def supervise(command: list[str]) -> int:
    """Run the command until it ends or the parent is gone; return its exit code."""
    parent = os.getppid()
    # Ctrl-C is the parent's business, and closes the pipe when it is meant
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # the child outlives this frame, and is stopped below
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent())  # noqa: S603, PLW1509
    signal.signal(signal.SIGTERM, lambda *_: _exit_with(child))
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ)
    while child.poll() is None:
        closed = bool(selector.select(LOOK_S)) and not os.read(sys.stdin.fileno(), 4096)
        if closed or os.getppid() != parent:
            _stop(child)
    return child.returncode


def _exit_with(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        _stop(child)
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[1:]))
