"""Who is there: the nodes of a run by the names they go by, whatever ids Flower drew for them.

Flower's node ids are random, and a plan draws cohorts and orders sums by node. So each connected node is asked once
for its name, and a run numbers the names: the same names give the same numbers, in worker processes, under Ray and on
SuperNodes alike.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from common.errors import RoundError
from server.fleet.inprocess import FIRST_NODE

log = logging.getLogger(__name__)

ROLL_ACTION = "roll_call"
"""The action of the query message that asks a node for its name."""
ANSWER_S = 120.0
"""How long one node may take to say its name: a SuperNode starts a Python with torch to answer."""
LOOK_S = 0.5


class Roll:
    """The nodes of a run: their names in the order of their numbers, and where each is reached now.

    Parameters
    ----------
    grid
        Flower's, to ask nodes that connect later.
    names
        All nodes of the run; number ``FIRST_NODE + i`` is ``names[i]``.
    addresses
        Flower's id of each name that has answered.
    """

    def __init__(self, grid: Grid, names: Sequence[str], addresses: Mapping[str, int]) -> None:
        self._grid = grid
        self.names = tuple(names)
        self._addresses = dict(addresses)
        self._asked = set(addresses.values())
        self._connected = frozenset(addresses.values())

    def numbers(self) -> tuple[int, ...]:
        """Return the numbers of all nodes of the run, connected or not: a plan does not depend on who is late."""
        return tuple(range(FIRST_NODE, FIRST_NODE + len(self.names)))

    def name(self, number: int) -> str:
        """Return the name of a node."""
        return self.names[number - FIRST_NODE]

    def address(self, number: int) -> int | None:
        """Return Flower's id of a node; None where it is not connected."""
        address = self._addresses.get(self.name(number))
        return address if address in self._connected else None

    def look_again(self) -> None:
        """See who is connected now, and ask those for their names that were not there before."""
        self._connected = frozenset(self._grid.get_node_ids())
        unknown = self._connected - self._asked
        self._asked |= unknown
        for name, address in ask_names(self._grid, unknown, ANSWER_S).items():
            if name not in self.names:
                log.warning("node %r is not one of this run's nodes; it waits for another run", name)
            elif self._addresses.get(name) in self._connected:
                log.warning("a second node says that it is %r; the first one counts", name)
            else:
                self._addresses[name] = address


def call_roll(grid: Grid, expected: int, *, known: Sequence[str] = (), patience_s: float = 300.0) -> Roll:
    """Wait for the nodes of a run and return them.

    Parameters
    ----------
    grid
        Flower's.
    expected
        How many nodes the run is planned for.
    known
        The names of the run, where it goes on; then it starts with those that are there when the patience ends.
    patience_s
        How long to wait for all of them.

    Raises
    ------
    RoundError
        When a new run finds fewer nodes than planned, or more, or two of one name; or a run that goes on finds none.
    """
    addresses: dict[str, int] = {}
    asked: set[int] = set()
    deadline = time.monotonic() + patience_s
    while True:
        new = set(grid.get_node_ids()) - asked
        asked |= new
        for name, address in ask_names(grid, new, min(ANSWER_S, max(1.0, deadline - time.monotonic()))).items():
            if name in addresses:
                raise RoundError(
                    f"two nodes that say they are {name!r}",
                    expected="each name once",
                    consequence="no round is begun",
                    mend="give each node another `client` in its configuration",
                )
            addresses[name] = address
        wanted = set(known) if known else None
        if wanted <= addresses.keys() if wanted is not None else len(addresses) >= expected:
            break
        if time.monotonic() > deadline:
            _refuse_missing(addresses, expected, known, patience_s)
            break
        time.sleep(LOOK_S)
    if not known and len(addresses) > expected:
        raise RoundError(
            f"{len(addresses)} nodes are connected: {', '.join(sorted(addresses))}",
            expected=f"the {expected} that the run is planned for",
            consequence="no round is begun",
            mend=f"set clients={len(addresses)}, or stop those that are too many",
        )
    return Roll(grid, known or sorted(addresses), addresses)


def _refuse_missing(found: Mapping[str, int], expected: int, known: Sequence[str], patience_s: float) -> None:
    here = f" ({', '.join(sorted(found))})" if found else ""
    if known and set(known) & found.keys():
        log.warning("of the run's nodes %s are not connected", ", ".join(sorted(set(known) - found.keys())))
        return
    raise RoundError(
        f"{len(found)} of {len(known) or expected} nodes are connected after {patience_s:.0f} s{here}",
        expected=", ".join(known) if known else f"{expected}",
        consequence="no round is begun",
        mend="start the SuperNodes and look into their logs, or plan for fewer clients",
    )


def ask_names(grid: Grid, nodes: Iterable[int], timeout_s: float) -> dict[str, int]:
    """Ask nodes, by Flower's ids, for their names; one that does not say it in time is left out with a warning."""
    messages = [
        Message(
            RecordDict({"question": ConfigRecord({})}),
            dst_node_id=node,
            message_type=f"{MessageType.QUERY}.{ROLL_ACTION}",
            ttl=timeout_s + 60.0,
        )
        for node in sorted(nodes)
    ]
    names: dict[str, int] = {}
    if not messages:
        return names
    for reply in grid.send_and_receive(messages, timeout=timeout_s):
        node = reply.metadata.src_node_id
        if reply.has_error():
            log.warning("node %d does not say its name: %s", node, reply.error.reason)
            continue
        record = reply.content.config_records.get("answer")
        name = None if record is None else record.get("client")
        if not isinstance(name, str) or not name or name in names:
            log.warning("node %d gives %r for its name", node, name)
            continue
        names[name] = node
    return names
