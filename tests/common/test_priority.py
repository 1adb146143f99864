"""A process gives way alone, or with the session that it began."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

AUTOGROUP = Path("/proc/self/autogroup")
TELL = """
import os
from pathlib import Path
from common.priority import give_way
group = Path("/proc/self/autogroup")
before = group.read_text() if group.exists() else ""
give_way(7)
print(os.getpriority(os.PRIO_PROCESS, 0))
print(before.split()[-1:], group.read_text().split()[-1:] if group.exists() else [])
"""


def told(*, own_session: bool) -> list[str]:
    run = subprocess.run(
        [sys.executable, "-c", TELL], capture_output=True, text=True, check=True, start_new_session=own_session
    )
    return run.stdout.splitlines()


def test_a_process_gives_way() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    assert told(own_session=False)[0] == told(own_session=True)[0] == str(min(19, before + 7))


@pytest.mark.skipif(
    not AUTOGROUP.exists() or not AUTOGROUP.read_text().strip(), reason="no sessions that share cores here"
)
def test_a_session_of_its_own_gives_way_and_no_other() -> None:
    own, shared = told(own_session=True)[1], told(own_session=False)[1]
    assert own.endswith("['7']")
    before, after = shared.split(" ")
    assert before == after
