"""How much a process asks of the machine beside others."""

import os
from contextlib import suppress
from pathlib import Path

_AUTOGROUP = Path("/proc/self/autogroup")


SPARE_TIME = 20
"""Steps of one that takes only what others leave; one less is the most that `nice` knows."""


def give_way(steps: int) -> None:
    """Let other processes have a core first: `steps` as of `nice`, 0 to 19, or `SPARE_TIME`.

    To be called before any thread is started. A process that was only lowered may finish its turn of some milliseconds,
    and what wakes up looks for a core that nobody is on; one in spare time gives its core up at once, and counts as
    nobody (`man 7 sched`, SCHED_IDLE). Where there is no such thing it is lowered as far as it goes.

    Linux may share cores among sessions first, whatever the processes in one ask for (`man 7 sched`, autogroups), so a
    session that begins with this process is lowered too; one that it shares with others, such as a terminal's, is
    theirs as well and stays.
    """
    if not steps:
        return
    if steps == SPARE_TIME and hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    steps = min(steps, SPARE_TIME - 1)
    os.nice(steps)
    if os.getsid(0) == os.getpid():
        with suppress(OSError):  # a system without sessions that share, or one that lets nobody lower them so soon
            _AUTOGROUP.write_text(f"{steps}\n")
