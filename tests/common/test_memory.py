"""Memory that was used once is used again without a fault, where a process asked for that."""

import platform
import subprocess
import sys

import pytest

from common.memory import keep_freed_memory

TELL = """
import resource, sys
from common.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    large = b"x" * (64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(), faults())
"""


def faults(how: str) -> list[int]:
    run = subprocess.run([sys.executable, "-c", TELL, how], capture_output=True, text=True, check=True)
    return [int(count) for count in run.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library decides for itself")
def test_kept_memory_is_not_fetched_again() -> None:
    first, again = faults("keep")
    assert again < first / 100
    # the twin: what happens when nobody asks
    first, again = faults("leave")
    assert again > first / 2


def test_other_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
