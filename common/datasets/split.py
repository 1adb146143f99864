"""Which interactions train, which test, which items are kept from training, and which node holds whom."""

from collections.abc import Iterable, Sequence

from common.datasets.base import Dataset
from common.errors import EmptyData, InvalidSetting
from common.events import Interaction
from common.ids import stable_hash
from common.settings import is_positive


def positives(dataset: Dataset) -> tuple[Interaction, ...]:
    """Return the interactions that count as liking the item, in time order."""
    return tuple(event for event in dataset.interactions if is_positive(event))


def global_time_split(
    interactions: Sequence[Interaction], share: float
) -> tuple[tuple[Interaction, ...], tuple[Interaction, ...]]:
    """Cut at one moment for everybody: the first `share` of the interactions train, the later ones test.

    Nothing in the training part is later than anything in the test part; interactions of one moment keep their order.

    Parameters
    ----------
    interactions
        At least two, in any order.
    share
        Between 0 and 1, both excluded. Both parts get at least one interaction.

    Raises
    ------
    InvalidSetting
        When `share` is out of range.
    EmptyData
        When there are fewer than two interactions.
    """
    if not 0.0 < share < 1.0:
        raise InvalidSetting(f"a training share of {share}", expected="more than 0 and less than 1")
    if len(interactions) < 2:
        raise EmptyData(f"{len(interactions)} interactions cannot be split", expected="at least 2")
    ordered = tuple(sorted(interactions, key=lambda event: event.ts))
    cut = min(max(round(len(ordered) * share), 1), len(ordered) - 1)
    return ordered[:cut], ordered[cut:]


def partition_users(user_ids: Iterable[str], nodes: int, seed: int) -> dict[int, tuple[str, ...]]:
    """Deal the users to nodes 0 .. nodes - 1, as evenly as can be.

    Users are ranked by a stable hash of seed and id and dealt in turn, so the result depends on the set of ids and the
    seed alone: not on their order, the process or the machine. Sizes differ by at most one.

    Returns
    -------
    dict
        Node to its user ids, sorted.

    Raises
    ------
    InvalidSetting
        When there are fewer users than nodes, or fewer than one node.
    """
    users = set(user_ids)
    if nodes < 1:
        raise InvalidSetting(f"{nodes} nodes", expected="at least 1")
    if nodes > len(users):
        raise InvalidSetting(
            f"{nodes} nodes for {len(users)} users",
            expected="at least one user a node",
            mend=f"ask for {max(len(users), 1)} nodes or fewer",
        )
    ranked = sorted(users, key=lambda user: (stable_hash("partition", seed, user), user))
    return {node: tuple(sorted(ranked[node::nodes])) for node in range(nodes)}


def hidden_items(item_ids: Iterable[str], share: float, seed: int) -> frozenset[str]:
    """Choose items to keep from training, so that there are cold ones to test on: about `share` of them.

    An item is chosen by a stable hash of seed and id, whatever other items there are.

    Raises
    ------
    InvalidSetting
        When `share` is not from 0 up to, but not including, 1.
    """
    if not 0.0 <= share < 1.0:
        raise InvalidSetting(f"a hidden share of {share}", expected="at least 0 and less than 1")
    return frozenset(item for item in item_ids if stable_hash("hidden", seed, item) < share * 2**64)
