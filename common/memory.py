"""What a process does with memory that it is done with."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep freed memory for the next who asks in this process, instead of giving it back; return whether that is so.

    For a process that copies hundreds of megabytes again and again, as a learner does for each snapshot: every fresh
    page costs a fault, and a virtual machine whose host takes free pages back stands still meanwhile. What it holds
    stays at its peak. To be called before threads are started: only the main thread's memory is kept. Other C
    libraries than glibc decide for themselves.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # without mappings of its own for large blocks, and with a top that is never cut, all of it is the heap's
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _MOST))
