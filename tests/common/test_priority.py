"""A process gives way alone, or with the session that it began."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.priority import give_way

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


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="Linux alone has SCHED_IDLE; the next test is for others")
def test_spare_time_is_what_nobody_wants_in_all_threads() -> None:
    tell = """
import os, threading
from common.priority import give_way
give_way(20)
thread = threading.Thread(target=lambda: print(os.sched_getscheduler(threading.get_native_id()) == os.SCHED_IDLE))
thread.start(); thread.join()
print(os.sched_getscheduler(0) == os.SCHED_IDLE)
"""
    run = subprocess.run([sys.executable, "-c", tell], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "True"]


def test_where_there_is_no_such_policy_a_process_is_lowered_as_far_as_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.delattr(os, "SCHED_IDLE", raising=False)
    monkeypatch.setattr(os, "nice", asked.append)
    monkeypatch.setattr(os, "getsid", lambda _: -1)
    give_way(20)
    assert asked == [19]


@pytest.mark.skipif(
    not AUTOGROUP.exists() or not AUTOGROUP.read_text().strip(), reason="no sessions that share cores here"
)
def test_a_session_of_its_own_gives_way_and_no_other() -> None:
    own, shared = told(own_session=True)[1], told(own_session=False)[1]
    assert own.endswith("['7']")
    before, after = shared.split(" ")
    assert before == after
