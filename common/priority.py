"""How much a process asks of the machine beside others."""

import os
from contextlib import suppress
from pathlib import Path

_AUTOGROUP = Path("/proc/self/autogroup")


def give_way(steps: int) -> None:
    """Let other processes have a core first: `steps` as of `nice`, 0 to 19.

    To be called before any thread is started. Linux may share cores among sessions first, whatever the processes in one
    ask for (`man 7 sched`, autogroups), so a session that begins with this process is lowered too; one that it shares
    with others, such as a terminal's, is theirs as well and stays.
    """
    if not steps:
        return
    os.nice(steps)
    if os.getsid(0) == os.getpid():
        with suppress(OSError):  # a system without sessions that share, or one that lets nobody lower them so soon
            _AUTOGROUP.write_text(f"{steps}\n")
