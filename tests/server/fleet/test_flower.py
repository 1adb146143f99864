"""A Flower Grid as a fleet: replies in order, silence by the clock, whatever order the grid gives."""

from collections.abc import Callable, Iterable

import pytest
from flwr.app import Context, RecordDict

from server.app import make_app
from server.fleet.base import Failure, Fleet, Reply, in_order
from server.fleet.inprocess import FIRST_NODE, InProcessGrid
from tests.server.fleet.test_inprocess import ADAPTER, APP, REQUEST, configs


def failures(*nodes: int) -> list[Reply]:
    return [Reply(node, Failure(node, "x")) for node in nodes]


@pytest.mark.parametrize(
    ("arriving", "leaving"),
    [((3, 1, 2), [1, 2, 3]), ((1, 2, 3), [1, 2, 3]), ((3, 2, 1), [1, 2, 3]), ((2, 1), [1, 2]), ((), [])],
)
def test_replies_leave_in_order(arriving: Iterable[int], leaving: list[int]) -> None:
    assert [reply.node for reply in in_order((1, 2, 3), iter(failures(*arriving)))] == leaving


def test_a_reply_leaves_as_soon_as_its_turn_comes() -> None:
    taken: list[int] = []

    def arriving() -> Iterable[Reply]:
        for reply in failures(1, 3, 2):
            taken.append(reply.node)
            yield reply

    ordered = in_order((1, 2, 3), iter(arriving()))
    assert next(ordered).node == 1
    assert taken == [1]  # nothing is waited for that is not needed
    assert [reply.node for reply in ordered] == [2, 3]


def test_the_server_app_hands_the_grid_to_the_conductor() -> None:
    seen: list[tuple[int, ...]] = []

    def conduct(fleet: Fleet, context: Context) -> None:
        seen.append(fleet.nodes())
        replies = list(fleet.train({FIRST_NODE: REQUEST}, ADAPTER, timeout_s=60.0, answered=lambda count: None))
        seen.append(tuple(reply.node for reply in replies))

    run: Callable[[InProcessGrid, Context], None] = make_app(conduct)
    with InProcessGrid(APP, configs({}, {}), workers=1) as grid:
        run(grid, Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={}))
    assert seen == [(FIRST_NODE, FIRST_NODE + 1), (FIRST_NODE,)]


def test_nobody_asked_nobody_answers() -> None:
    from server.fleet.flower import GridFleet

    with InProcessGrid(APP, configs({}), workers=1) as grid:
        assert list(GridFleet(grid).train({}, ADAPTER, timeout_s=1.0, answered=lambda count: None)) == []
