"""What the stream's blend knows beside its factors, as serving reads it: frozen arrays, no learner."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.errors import ArtifactCorrupt

SCHEMA = 4
"""Version of what a snapshot says of a blend; another one is refused."""
MEMBERS = ("neighbours", "factors", "content", "popularity")
BLEND_ARRAYS = (
    "weights",
    "pair_starts",
    "pair_items",
    "pair_weights",
    "neighbour_decay",
    "popularity",
    "positives",
    "habit",
    "opening_weights",
    "opening_habit",
    "moments",
    "tried_starts",
    "tried_items",
)


@dataclass(frozen=True, slots=True)
class BlendMembers:
    """The members of a blend beside its factors, and how much each counts.

    A user's score of item k is ``sum_m weights[b, m] z_m[k]``. b is the last bucket that is not above the number of
    the user's likes; z_m are member m's raw scores less their mean, over their standard deviation, both taken over the
    items that the user may be shown, or 0 where these all get the same. Without a history neighbours and content are 0.

    - neighbours: ``sum_d neighbour_decay[d] S[h_d, k]``, h being what the user tried, newest first;
    - factors: as `common.snapshots.MFSnapshot` says;
    - content: ``t . x_k``, x being the last `text_columns` columns of its `item_factors`, and t folded from the rows x
      of the history as its users are folded from `history_factors`;
    - popularity: as it stands here, the same for everybody.

    Where there are habits, each item that the user liked before gets its `habit` on top. A question asked later than
    `visit_ms` after the user's newest like opens a visit: it has `opening_weights` and `opening_habit` instead.

    Parameters
    ----------
    weights
        float64 [b, m], in the order of `buckets` and `MEMBERS`.
    pair_starts, pair_items, pair_weights
        int64 [n + 1], int32 [p] and float32 [p]: row i of S holds ``pair_weights[a:b]`` at the items
        ``pair_items[a:b]``, with ``a, b = pair_starts[i], pair_starts[i + 1]``, and 0 everywhere else.
    neighbour_decay
        float32 [depth], newest first; older items of the history ask nothing.
    popularity
        float32 [n].
    positives
        Likes of each user, those beyond the window included, int64 [u].
    habit
        float32 [s], one for each of the snapshot's `seen_items`; or [0], where users like nothing twice.
    opening_weights, opening_habit
        float64 [1, m] and float32 [s], or [0, m] and [0].
    moments
        Milliseconds of each user's newest like, -1 for no time, int64 [u]; or [0].
    tried_starts, tried_items
        int64 [u + 1] and int32 [t]: what each user tried, liked or not, oldest first: the snapshot's histories, and
        what was rated low between. Nobody is shown that either, unless `repeats` are allowed: `seen_items` has it.
    buckets
        Least length of history of each row of `weights`, rising from 0.
    visit_ms
        Likes of a user no further apart than this are of one visit.
    unknown_popularity
        Popularity of an item that the learner does not know.
    text_columns
        0 when the learner was told no texts; content says nothing then.
    repeats
        Whether items that the user liked may be shown again; they are among those that z is taken over then.
    """

    weights: np.ndarray
    pair_starts: np.ndarray
    pair_items: np.ndarray
    pair_weights: np.ndarray
    neighbour_decay: np.ndarray
    popularity: np.ndarray
    positives: np.ndarray
    habit: np.ndarray
    opening_weights: np.ndarray
    opening_habit: np.ndarray
    moments: np.ndarray
    tried_starts: np.ndarray
    tried_items: np.ndarray
    buckets: tuple[int, ...]
    visit_ms: int
    unknown_popularity: float
    text_columns: int
    repeats: bool

    def opens_visit(self, user: int, at: int | None) -> bool:
        """Return whether at that time, in milliseconds, a user's row comes for another visit; False without a time."""
        if at is None or not len(self.moments):
            return False
        return 0 <= int(self.moments[user]) < at - self.visit_ms

    def weights_of(self, likes: int, *, opens: bool = False) -> np.ndarray:
        """Return the members' weights for a user with so many likes, or where a visit opens, float64 [m]."""
        row: np.ndarray = self.opening_weights[0] if opens else self.weights[bisect_right(self.buckets, likes) - 1]
        return row

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by name, as they are stored."""
        return {f"blend.{name}": getattr(self, name) for name in BLEND_ARRAYS}

    def details(self) -> dict[str, Any]:
        """Return all else, as JSON values."""
        return {
            "schema": SCHEMA,
            "members": list(MEMBERS),
            "buckets": list(self.buckets),
            "visit_ms": self.visit_ms,
            "unknown_popularity": self.unknown_popularity,
            "text_columns": self.text_columns,
            "repeats": self.repeats,
        }


def read_blend(
    arrays: Mapping[str, np.ndarray], details: Mapping[str, Any], where: str, *, checked: bool = False
) -> BlendMembers:
    """Return what `BlendMembers.arrays` and `BlendMembers.details` gave.

    Parameters
    ----------
    checked
        Whether all places are known to lie inside: looking at each reads the arrays from end to end.

    Raises
    ------
    ArtifactCorrupt
        When it is of another version, a part is missing, or parts do not fit together; `where` is named.
    """
    if details.get("schema") != SCHEMA or tuple(details.get("members", ())) != MEMBERS:
        raise ArtifactCorrupt(
            f"{where} holds a blend of schema {details.get('schema')!r} with members {details.get('members')!r}",
            expected=f"schema {SCHEMA} with {list(MEMBERS)}",
            consequence="the snapshot is not served",
            mend="use the program version that wrote it, or restart the stream learner",
        )
    missing = [name for name in BLEND_ARRAYS if f"blend.{name}" not in arrays]
    if missing:
        raise ArtifactCorrupt(f"tensor 'blend.{missing[0]}' of {where} is missing")
    blend = BlendMembers(
        **{name: arrays[f"blend.{name}"] for name in BLEND_ARRAYS},
        buckets=tuple(int(least) for least in details["buckets"]),
        visit_ms=int(details["visit_ms"]),
        unknown_popularity=float(details["unknown_popularity"]),
        text_columns=int(details["text_columns"]),
        repeats=bool(details["repeats"]),
    )
    if not checked:
        _check(blend, where)
    seen = len(arrays.get("seen_items", ()))
    for name in ("habit", "opening_habit"):
        if len(arrays[f"blend.{name}"]) not in (0, seen):
            raise ArtifactCorrupt(f"tensor 'blend.{name}' of {where} does not fit the tensor 'seen_items'")
    return blend


def _check(blend: BlendMembers, where: str) -> None:
    """Refuse places that lie outside: they would fail in the middle of a request."""
    starts, items = len(blend.pair_starts), blend.pair_items
    rising = starts > 0 and blend.pair_starts[0] == 0 and bool((np.diff(blend.pair_starts) >= 0).all())
    if not rising or starts != len(blend.popularity) + 1 or blend.pair_starts[-1] != len(items):
        raise ArtifactCorrupt(f"tensor 'blend.pair_starts' of {where} does not fit the other tensors")
    tried, begins = blend.tried_items, blend.tried_starts
    if len(begins) != len(blend.positives) + 1 or begins[0] != 0 or begins[-1] != len(tried):
        raise ArtifactCorrupt(f"tensor 'blend.tried_starts' of {where} does not fit the other tensors")
    if (np.diff(begins) < 0).any() or (len(tried) and not 0 <= tried.min() <= tried.max() < starts - 1):
        raise ArtifactCorrupt(f"tensor 'blend.tried_items' of {where} does not fit the other tensors")
    if len(items) != len(blend.pair_weights) or (len(items) and not 0 <= items.min() <= items.max() < starts - 1):
        raise ArtifactCorrupt(f"tensor 'blend.pair_items' of {where} does not fit the other tensors")
    if blend.weights.shape != (len(blend.buckets), len(MEMBERS)) or blend.buckets[:1] != (0,):
        raise ArtifactCorrupt(
            f"tensor 'blend.weights' of {where} is {blend.weights.shape}", expected=f"a row of each of {blend.buckets}"
        )
    if len(blend.moments) not in (0, len(blend.positives)):
        raise ArtifactCorrupt(f"tensor 'blend.moments' of {where} does not fit the other tensors")
    if blend.opening_weights.shape != (int(len(blend.moments) > 0), len(MEMBERS)) and len(blend.positives):
        raise ArtifactCorrupt(f"tensor 'blend.opening_weights' of {where} does not fit the tensor 'blend.moments'")
