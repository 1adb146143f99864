"""Nodes by name: whatever ids Flower draws, whoever is late, a run has the same numbers."""

from collections.abc import Iterable, Mapping, Sequence

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from common.errors import RoundError
from common.updates import AdapterUpdate
from server.fleet.flower import GridFleet
from server.fleet.inprocess import FIRST_NODE
from server.fleet.roll import call_roll
from tests.server.fleet.apps import app
from tests.server.fleet.test_inprocess import ADAPTER, REQUEST


class Link(Grid):
    """A link whose nodes have ids as Flower draws them, and come and go.

    Parameters
    ----------
    nodes
        Node id to its configuration.
    joining
        Ids to connect at each look, one set a look; the last one stays.
    """

    def __init__(self, nodes: Mapping[int, Mapping[str, str]], joining: Sequence[Iterable[int]] = ()) -> None:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
        self.nodes = {node: dict(config) for node, config in nodes.items()}
        self.joining = [set(each) for each in joining] or [set(nodes)]
        self.asked: list[tuple[int, str]] = []
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Do nothing."""

    @property
    def run(self) -> Run:
        """The one run."""
        return Run.create_empty(1)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return who is connected now."""
        return self.joining.pop(0) if len(self.joining) > 1 else self.joining[0]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Answer at once, as the app does."""
        ids = []
        for message in messages:
            node, name = message.metadata.dst_node_id, f"m{len(self.asked)}"
            message.metadata.__dict__["_message_id"] = name
            self.asked.append((node, message.metadata.message_type))
            context = Context(1, node, dict(self.nodes[node]), RecordDict(), {})
            try:
                reply = app(message, context)
            except Exception as error:  # as the runtime does: the node's reply says what went wrong
                reply = Message(Error(2, str(error)), reply_to=message)
            self._replies[name] = reply
            ids.append(name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return what is there."""
        return [self._replies.pop(name) for name in message_ids if name in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push and pull."""
        return self.pull_messages(self.push_messages(messages))


def named(*names: str, ids: Sequence[int]) -> dict[int, dict[str, str]]:
    return {node: {"client": name} for name, node in zip(names, ids, strict=True)}


def answers(link: Link, fleet: GridFleet) -> dict[int, str]:
    requests = {number: REQUEST for number in fleet.nodes()}
    replies = fleet.train(requests, ADAPTER, timeout_s=5.0, answered=lambda count: None)
    return {
        r.node: r.outcome.meta.client if isinstance(r.outcome, AdapterUpdate) else r.outcome.reason for r in replies
    }


@pytest.mark.parametrize("ids", [[7, 9, 8], [2**62, 5, 2**40], [1, 2, 3]])
def test_the_same_names_have_the_same_numbers_whatever_their_ids(ids: list[int]) -> None:
    link = Link(named("b", "c", "a", ids=ids))
    fleet = GridFleet(link, call_roll(link, 3, patience_s=5.0))
    assert fleet.nodes() == (FIRST_NODE, FIRST_NODE + 1, FIRST_NODE + 2)
    assert answers(link, fleet) == {FIRST_NODE: "a", FIRST_NODE + 1: "b", FIRST_NODE + 2: "c"}


def test_it_waits_for_those_that_are_late_and_asks_each_once() -> None:
    link = Link(named("a", "b", ids=[5, 6]), joining=[[], [6], [6], [5, 6]])
    assert call_roll(link, 2, patience_s=30.0).names == ("a", "b")
    assert sorted(node for node, _ in link.asked) == [5, 6]


def test_too_few_nodes_begin_no_run() -> None:
    link = Link(named("a", ids=[5]))
    with pytest.raises(RoundError, match=r"1 of 3 nodes are connected after 0 s \(a\).*no round is begun.*SuperNodes"):
        call_roll(link, 3, patience_s=0.0)


def test_too_many_nodes_begin_no_run() -> None:
    link = Link(named("a", "b", ids=[5, 6]))
    with pytest.raises(RoundError, match="2 nodes are connected: a, b; expected the 1 that the run is planned for"):
        call_roll(link, 1, patience_s=0.0)


def test_two_nodes_of_one_name_begin_no_run() -> None:
    link = Link(named("a", "b", "a", ids=[5, 6, 7]), joining=[[5, 6], [5, 6, 7]])
    with pytest.raises(RoundError, match="two nodes that say they are 'a'"):
        call_roll(link, 3, patience_s=5.0)


def test_a_node_that_fails_to_say_its_name_is_not_counted(caplog: pytest.LogCaptureFixture) -> None:
    link = Link({5: {"client": "a"}, 6: {"client": "b", "do-when-called": "raise"}, 7: {"client": ""}})
    assert call_roll(link, 1, patience_s=0.0).names == ("a",)
    assert "no data at this node" in caplog.text
    assert "gives '' for its name" in caplog.text


def test_a_run_that_goes_on_starts_without_those_that_are_gone(caplog: pytest.LogCaptureFixture) -> None:
    link = Link(named("a", "c", ids=[8, 9]))
    roll = call_roll(link, 3, known=("a", "b", "c"), patience_s=0.0)
    assert "of the run's nodes b are not connected" in caplog.text
    assert answers(link, GridFleet(link, roll)) == {
        FIRST_NODE: "a",
        FIRST_NODE + 1: "not connected",
        FIRST_NODE + 2: "c",
    }
    with pytest.raises(RoundError, match="0 of 2 nodes are connected"):
        call_roll(Link({}, joining=[[]]), 2, known=("a", "b"), patience_s=0.0)


def test_a_node_that_comes_back_with_another_id_keeps_its_number() -> None:
    link = Link(named("a", "b", "b", ids=[5, 6, 77]), joining=[[5, 6]])
    fleet = GridFleet(link, call_roll(link, 2, patience_s=5.0))
    link.joining = [{5}]
    assert answers(link, fleet)[FIRST_NODE + 1] == "not connected"
    link.joining = [{5, 77}]
    assert answers(link, fleet) == {FIRST_NODE: "a", FIRST_NODE + 1: "b"}
    assert (77, "train") in link.asked


def test_who_joins_later_or_takes_anothers_name_is_told_to_wait(caplog: pytest.LogCaptureFixture) -> None:
    link = Link(named("a", "x", "a", ids=[5, 6, 7]), joining=[[5]])
    fleet = GridFleet(link, call_roll(link, 1, patience_s=5.0))
    link.joining = [{5, 6, 7}]
    assert answers(link, fleet) == {FIRST_NODE: "a"}
    assert (5, "train") in link.asked
    assert "'x' is not one of this run's nodes" in caplog.text
    assert "a second node says that it is 'a'" in caplog.text
