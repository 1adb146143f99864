"""The fleet of worker processes: real messages, and no death or silence that costs more than one reply."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from common.array_record import to_record
from common.instructions import Objective, PrivacyTerms, TrainRequest
from common.store import pack_arrays
from common.updates import AdapterUpdate
from server.fleet import inprocess
from server.fleet.base import Failure, Reply
from server.fleet.flower import GridFleet
from server.fleet.inprocess import FIRST_NODE, InProcessGrid
from server.fleet.wire import Task, encode_task
from server.fleet.worker import load_app
from tests.processes import alive

APP = "tests.server.fleet.apps:app"
ADAPTER = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([np.float32(1e-30)])}
REQUEST = TrainRequest(
    "run", 3, "base", "fedsvd", ("a", "b"), "sha", 10, Objective(), PrivacyTerms("off", float("inf"))
)


def ask(
    grid: InProcessGrid,
    *,
    timeout_s: float = 120.0,
    nodes: Sequence[int] | None = None,
    adapter: Mapping[str, np.ndarray] = ADAPTER,
    ahead: int | None = None,
) -> list[Reply]:
    fleet = GridFleet(grid, ahead=ahead)
    told: list[int] = []
    requests = {node: REQUEST for node in nodes or fleet.nodes()}
    replies = list(fleet.train(requests, adapter, timeout_s=timeout_s, answered=told.append))
    assert [reply.node for reply in replies] == sorted(requests)
    assert told == sorted(told)
    return replies


def clients(replies: Sequence[Reply]) -> list[str]:
    return [r.outcome.meta.client if isinstance(r.outcome, AdapterUpdate) else r.outcome.reason for r in replies]


def configs(*nodes: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"client": f"n{number}", **node} for number, node in enumerate(nodes)]


def gone(pids: Sequence[int], within_s: float = 15.0) -> bool:
    deadline = time.monotonic() + within_s
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def workers_of(grid: InProcessGrid) -> list[int]:
    return [worker.process.pid for worker in grid._workers]


def test_replies_come_in_the_order_of_the_nodes_whoever_is_first() -> None:
    slow_first = configs({"do": "sleep", "seconds": "0.5"}, {}, {"do": "sleep", "seconds": "0.2"}, {}, {})
    with InProcessGrid(APP, slow_first, workers=3) as grid:
        replies = ask(grid)
    assert clients(replies) == ["n0", "n1", "n2", "n3", "n4"]
    assert [reply.node for reply in replies] == [FIRST_NODE + i for i in range(5)]


def test_a_message_comes_through_whole() -> None:
    with InProcessGrid(APP, configs({"epsilon": "2.5"}), workers=1) as grid:
        (reply,) = ask(grid)
    update = reply.outcome
    assert isinstance(update, AdapterUpdate)
    for name, array in ADAPTER.items():
        np.testing.assert_array_equal(update.arrays[name], 2 * array)
        assert update.arrays[name].dtype == np.float32
    meta = update.meta
    assert (meta.client, meta.base_version, meta.strategy, meta.round, meta.examples) == (
        "n0",
        "base",
        "fedsvd",
        3,
        4.0,
    )
    assert meta.privacy is not None
    assert (meta.privacy.unit, meta.privacy.delta, meta.epsilon) == ("user", 1e-4, 2.5)
    assert meta.privacy.steps == ((1.0, 0.2, 3), (2.0, 0.2, 1))
    assert dict(meta.metrics) == {"loss": 0.5}
    assert reply.received_bytes == reply.sent_bytes == len(pack_arrays(ADAPTER))


def test_an_exception_costs_one_reply_and_says_why() -> None:
    with InProcessGrid(APP, configs({}, {"do": "raise"}, {}), workers=1) as grid:
        first, broken, last = clients(ask(grid))
    assert (first, last) == ("n0", "n2")
    assert "ValueError" in broken
    assert "no data at this node" in broken


@pytest.mark.parametrize("how", ["die", "die-in-the-middle-of-an-answer", "exit"])
def test_who_dies_twice_is_a_failure_and_the_others_answer(how: str, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    with InProcessGrid(APP, configs({}, {"do": how, "mark": mark}, {}, {}), workers=2) as grid:
        replies = clients(ask(grid))
        assert clients(ask(grid, nodes=[FIRST_NODE, FIRST_NODE + 2])) == ["n0", "n2"]  # the next round is whole
    assert replies[0::2] == ["n0", "n2"]
    assert replies[3] == "n3"
    assert replies[1].startswith("the worker process died twice (status ")
    assert len(set(Path(mark).read_text().split())) == 2  # two processes, no third


def test_who_dies_once_is_asked_again_by_another_worker(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with InProcessGrid(APP, configs({}, {"do": "die-once", "mark": str(mark)}), workers=1) as grid:
        before = workers_of(grid)
        assert clients(ask(grid)) == ["n0", "n1"]
        assert workers_of(grid) != before
        assert len(grid._workers) == 1
    assert len(set(mark.read_text().split())) == 2


def test_an_idle_worker_that_was_killed_is_replaced() -> None:
    with InProcessGrid(APP, configs({}, {}), workers=2) as grid:
        assert clients(ask(grid)) == ["n0", "n1"]
        pids = workers_of(grid)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        # their ends of the sockets too: a job that meets two such workers has not killed either
        assert gone(pids)
        assert clients(ask(grid)) == ["n0", "n1"]


def test_a_silent_node_is_a_failure_and_holds_up_nobody() -> None:
    with InProcessGrid(APP, configs({"do": "hang"}, {}, {}), workers=2) as grid:
        ask(grid, nodes=[FIRST_NODE + 1, FIRST_NODE + 2])  # both workers have started
        replies = ask(grid, timeout_s=2.0)
        pids = workers_of(grid)
    assert clients(replies) == ["no reply within 2 s", "n1", "n2"]
    assert gone(pids)


def test_a_worker_that_hangs_past_its_messages_life_is_replaced() -> None:
    with InProcessGrid(APP, configs({"do": "hang"}, {}), workers=1) as grid:
        ask(grid, nodes=[FIRST_NODE + 1])
        (stuck,) = workers_of(grid)
        records = RecordDict(
            {
                "adapter": to_record(ADAPTER),
                "request": ConfigRecord(REQUEST.flat()),  # type: ignore[arg-type]  # a union flwr widens
            }
        )
        message = Message(records, dst_node_id=FIRST_NODE, message_type=MessageType.TRAIN, ttl=1.0)
        (reply,) = grid.send_and_receive([message], timeout=30.0)
        assert reply.has_error()
        assert gone([stuck])
        assert clients(ask(grid, nodes=[FIRST_NODE + 1])) == ["n1"]


def test_closing_leaves_no_worker_even_a_busy_one() -> None:
    with InProcessGrid(APP, configs({"do": "hang"}, {}), workers=2) as grid:
        ask(grid, nodes=[FIRST_NODE + 1])
        ask(grid, timeout_s=0.5)
        pids = workers_of(grid)
        assert len(pids) == 2
    assert gone(pids)


PARENT = """
import sys, time
from server.fleet.inprocess import InProcessGrid
from tests.server.fleet.test_inprocess import APP, ask, configs, workers_of

grid = InProcessGrid(APP, configs({}, {}, {"do": "hang"}, {"do": "hang"}), workers=2)
ask(grid, nodes=[2, 3])
if sys.argv[1] == "busy":
    ask(grid, nodes=[4, 5], timeout_s=0.5)
print(*workers_of(grid), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_no_worker_outlives_a_parent_that_was_killed(state: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, state], env=environment, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(alive(pid) for pid in pids)
        parent.kill()
    assert gone(pids)


SPOILED = [
    "no update",
    "no meta",
    "no metrics",
    "round infinite",
    "round a word",
    "lists of two lengths",
    "a number for a list",
    "a list for a metric",
    "cut array",
    "no bytes",
    "pickle",
    "zip",
    "archive",
    "another serialisation",
    "two entries",
]


@pytest.fixture(scope="module")
def spoilers() -> Iterator[InProcessGrid]:
    """Run one worker for a node of each way to spoil a reply, and an honest one at the end."""
    nodes = configs(*({"spoil": how, "epsilon": "1.0"} for how in SPOILED), {})
    with InProcessGrid(APP, nodes, workers=1) as grid:
        yield grid


@pytest.mark.parametrize("how", SPOILED)
def test_a_malformed_reply_is_a_failure_and_the_others_count(how: str, spoilers: InProcessGrid) -> None:
    node = FIRST_NODE + SPOILED.index(how)
    replies = ask(spoilers, nodes=[node, FIRST_NODE + len(SPOILED)])
    assert isinstance(replies[0].outcome, Failure)
    assert replies[0].outcome.reason.startswith("a reply that is no update (")
    assert clients(replies[1:]) == [f"n{len(SPOILED)}"]


def test_a_reference_to_something_else_is_refused() -> None:
    with pytest.raises(TypeError, match=r"tests.server.fleet.apps:not_an_app is a str, not a ClientApp"):
        load_app("tests.server.fleet.apps:not_an_app")


def test_an_app_that_cannot_be_loaded_is_a_failure_of_each_node() -> None:
    with InProcessGrid("no.such.module:app", configs({}, {}), workers=1) as grid:
        replies = clients(ask(grid))
    assert replies == ["the worker process died twice (status 1)"] * 2


def test_the_dearest_work_goes_first_and_replies_keep_their_order(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    nodes = configs(*({"diary": str(diary)} for _ in range(5)))
    with InProcessGrid(APP, nodes, workers=1, costs=[1.0, 5.0, 3.0, 5.0, 0.0]) as grid:
        assert clients(ask(grid)) == ["n0", "n1", "n2", "n3", "n4"]
    assert diary.read_text().split() == ["n1", "n3", "n2", "n0", "n4"]


def test_a_worker_is_sent_the_same_adapter_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Task] = []

    def noted(task: Task) -> bytes:
        sent.append(task)
        return encode_task(task)

    monkeypatch.setattr(inprocess, "encode_task", noted)
    with InProcessGrid(APP, configs(*({} for _ in range(6))), workers=2) as grid:
        first = ask(grid)
        assert [task.arrays is not None for task in sent].count(True) == 2  # one a worker
        second = ask(grid, adapter={name: array + 1 for name, array in ADAPTER.items()})
        assert [task.arrays is not None for task in sent].count(True) == 4
    for replies, shift in ((first, 0), (second, 1)):
        for reply in replies:
            assert isinstance(reply.outcome, AdapterUpdate)
            np.testing.assert_array_equal(reply.outcome.arrays["a"], 2 * (ADAPTER["a"] + shift))


def test_a_worker_that_took_anothers_place_is_sent_the_adapter_again(tmp_path: Path) -> None:
    nodes = configs({}, {"do": "die-once", "mark": str(tmp_path / "mark")}, {})
    with InProcessGrid(APP, nodes, workers=1) as grid:
        for reply in ask(grid):
            assert isinstance(reply.outcome, AdapterUpdate)
            np.testing.assert_array_equal(reply.outcome.arrays["a"], 2 * ADAPTER["a"])


@pytest.mark.parametrize("ahead", [1, 2, 3, 100])
def test_no_more_messages_are_under_way_than_asked_for(ahead: int) -> None:
    under_way: list[int] = []

    class Counted(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            wanted = list(message_ids)
            under_way.append(len(wanted))
            return super().pull_messages(wanted)

    with Counted(APP, configs(*({} for _ in range(9))), workers=2) as grid:
        assert clients(ask(grid, ahead=ahead)) == [f"n{number}" for number in range(9)]
    assert max(under_way) == min(ahead, 9)


def test_there_are_no_more_workers_than_nodes() -> None:
    with InProcessGrid(APP, configs({}), workers=8) as grid:
        assert len(workers_of(grid)) == 1
        assert list(grid.get_node_ids()) == [FIRST_NODE]
