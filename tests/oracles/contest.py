"""What `stream.contest` asks and finds, once more: all contenders in lockstep, lists, and a loop over the scores."""

import math
from collections.abc import Mapping, Sequence

from common.events import Interaction
from common.settings import feedback_of
from stream.contest import Contender


def ranks_in_lockstep(
    events: Sequence[Interaction], contenders: Mapping[str, Contender], warm: int, hidden: frozenset[str], repeats: bool
) -> tuple[dict[str, list[int]], list[tuple[int, int, bool]]]:
    """Return each contender's ranks, and for each test the likes of user and item before and whether one is inside."""
    items = list(dict.fromkeys(event.item_id for event in events if feedback_of(event).sign > 0))
    for contender in contenders.values():
        contender.start(items)
    likes: list[Interaction] = []
    ranks: dict[str, list[int]] = {name: [] for name in contenders}
    known = []
    for event in events:
        feedback = feedback_of(event)
        if feedback.sign > 0:
            own = [before for before in likes if before.user_id == event.user_id]
            seen = set() if repeats else {before.item_id for before in own}
            among = [item for item in items if item not in seen and (not hidden or item in hidden)]
            if len(likes) >= warm and event.item_id in among:
                shown = [before for before in likes if before.item_id not in hidden]
                known.append(
                    (
                        sum(before.user_id == event.user_id for before in shown),
                        sum(before.item_id == event.item_id for before in shown),
                        bool(own) and own[-1].ts == event.ts,
                    )
                )
                for name, contender in contenders.items():
                    scores = dict(zip(items, contender.scores(event.user_id, event.ts), strict=True))
                    mark = scores[event.item_id]
                    # what a contender would not show comes last of all there is
                    open_items = items if mark == -math.inf else among
                    ranks[name].append(sum(not scores[item] < mark for item in open_items))
            likes.append(event)
        if event.item_id in items and event.item_id not in hidden:
            for contender in contenders.values():
                contender.learn(event, feedback)
    return ranks, known
