"""Question in, slate out: pure, whatever edge asks."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count, starmap
from typing import Any

import numpy as np

from common.errors import InvalidSetting, UnknownName, UsageError
from common.events import MAX_ID_LENGTH, MAX_TS
from common.ids import rng_for
from common.recent import NOTHING, Recent
from server.serving.blended import Asked, blended
from server.serving.bundle import Bundle, Person
from server.serving.diversity import pool_size, spread_out
from server.serving.exploration import POLICY as EPSILON_GREEDY
from server.serving.exploration import explored
from server.serving.fusion import Fused, FusionTable, Scored, fuse
from server.serving.reasons import Reason, reasons_for
from server.serving.shortlist import QuickScores

MAX_K = 500
MAX_HISTORY = 1_000
MAX_QUERY = 100_000
"""Longest query, in characters; the encoder cuts it to its own length."""
MAX_FILTER = 1_000
"""Most categories, allowed and denied ids, each."""
DETERMINISTIC = "deterministic"
"""The policy that does not explore: the best k, so every propensity is 1."""

RequestIds = Callable[[], str]
"""Gives each slate a new id, by which later clicks refer to it."""


def random_request_id() -> str:
    """Return a new unguessable id."""
    return os.urandom(16).hex()


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked.

    Parameters
    ----------
    user_id
        Whose history and seen items are used; None for nobody in particular.
    history
        Ids of items liked beyond what is known of the user, oldest first.
    query
        Text to be close to.
    k
        How many items.
    exclude_seen
        Leave out what the user liked already and what `history` names.
    explain
        Give reasons.
    categories
        Only items that have one of them; none given takes all.
    allow
        Only these items; none given takes all.
    deny
        None of these items, whatever else is said.
    diversity
        0 to 1: how much less alike the items are to be, by their texts; see `server.serving.diversity`.
    at
        When it is asked, in milliseconds since the epoch: long after the user's last like it opens another visit, where
        the learner minds visits. None is not long after.
    explore
        0 to 1: how often a slot is given to any of the items in question; see `server.serving.exploration`. None is as
        the service is set, or 0.

    Raises
    ------
    InvalidSetting
        When a value is out of range.
    """

    user_id: str | None = None
    history: tuple[str, ...] = ()
    query: str | None = None
    k: int = 10
    exclude_seen: bool = True
    explain: bool = False
    categories: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    diversity: float = 0.0
    at: int | None = None
    explore: float | None = None

    def __post_init__(self) -> None:
        checked_k(self.k)
        if self.explore is not None and not 0.0 <= self.explore <= 1.0:
            raise InvalidSetting(f"explore {self.explore}", expected="0 to 1, or none")
        if self.at is not None and not 0 <= self.at < MAX_TS:
            raise InvalidSetting(f"at {self.at}", expected="milliseconds since the epoch, or none")
        if not 0.0 <= self.diversity <= 1.0:
            raise InvalidSetting(f"diversity {self.diversity}", expected="0 to 1")
        for name, ids in (("categories", self.categories), ("allow", self.allow), ("deny", self.deny)):
            if len(ids) > MAX_FILTER:
                raise InvalidSetting(f"{len(ids)} {name}", expected=f"at most {MAX_FILTER}")
        if self.user_id is not None and not 0 < len(self.user_id) <= MAX_ID_LENGTH:
            raise InvalidSetting(
                f"a user id of {len(self.user_id)} characters", expected=f"1 to {MAX_ID_LENGTH}, or none"
            )
        if len(self.history) > MAX_HISTORY:
            raise InvalidSetting(f"a history of {len(self.history)} items", expected=f"at most {MAX_HISTORY}")
        if self.query is None:
            return
        if not self.query.strip():
            raise InvalidSetting("an empty query", expected="some text, or no query at all")
        if len(self.query) > MAX_QUERY:
            raise InvalidSetting(f"a query of {len(self.query)} characters", expected=f"at most {MAX_QUERY}")
        if any("\ud800" <= letter <= "\udfff" for letter in self.query):
            raise InvalidSetting("a query with half a surrogate pair", expected="text that can be written as UTF-8")


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One recommended item.

    Parameters
    ----------
    rank
        From 1.
    score
        Weighted sum of z-scores: comparable within one slate, not across slates.
    propensity
        Probability that the serving policy shows this item here, given those above it; 1 where it does not explore.
    reasons
        Their weights add up to the score; empty unless they were asked for.
    """

    item_id: str
    rank: int
    score: float
    propensity: float
    title: str
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True)
class Slate:
    """The answer.

    Parameters
    ----------
    request_id
        Clicks that follow from it carry this.
    model_version
        The version whose vectors it was made with.
    known_user
        Whether the click learner knows the user, from its snapshot or from a click since.
    items
        Best first; with diversity, in the order in which they were chosen.
    ignored
        "unknown_items": how many ids of the given history are not in the catalogue; where they were given, also
        "unknown_allow", "unknown_deny" and "unknown_categories".
    answered_from
        The opinions that the scores are made of: of a user without a history popularity, and what texts and clicks say
        of items alone.
    policy
        How the items were chosen among all: "deterministic", or "epsilon-greedy" where the question explores.
    """

    request_id: str
    model_version: str
    known_user: bool
    items: tuple[Recommendation, ...]
    ignored: dict[str, int] = field(default_factory=dict)
    answered_from: tuple[str, ...] = ()
    policy: str = DETERMINISTIC


@dataclass(frozen=True, slots=True)
class SimilarItem:
    """One item like another; `score` is the cosine of their text vectors."""

    item_id: str
    rank: int
    score: float
    title: str


@dataclass(frozen=True, slots=True)
class SimilarItems:
    """Items whose text is like one item's, best first."""

    item_id: str
    model_version: str
    items: tuple[SimilarItem, ...]


class UnknownItem(UnknownName):
    """An item that the catalogue does not hold."""

    def __init__(self, item_id: str) -> None:
        # the known names would be the whole catalogue, so they are not listed
        UsageError.__init__(self, f"no item {item_id[:100]!r}", expected="the id of an item in the catalogue")


def checked_k(k: int) -> int:
    """Return k, or raise `InvalidSetting` when it is not between 1 and `MAX_K`."""
    if not 1 <= k <= MAX_K:
        raise InvalidSetting(f"k = {k}", expected=f"1 to {MAX_K}")
    return k


DEFAULT_TABLE = FusionTable()
_NO_ROWS = np.empty(0, dtype=np.int64)


def recommend(
    bundle: Bundle,
    question: Question,
    query_vector: np.ndarray | None,
    request_id: str,
    table: FusionTable = DEFAULT_TABLE,
    recent: Recent = NOTHING,
) -> Slate:
    """Answer a question from one bundle.

    Parameters
    ----------
    query_vector
        The query's unit vector under the bundle's own adapter, float32 [d]; None when there is no query.
    request_id
        Becomes the slate's.
    recent
        What the user did since the bundle's snapshot.
    """
    given, person = _rows(bundle, question.history), bundle.person(question.user_id)
    asked = _asked(bundle, question, recent, given, person)
    eligible, unknown = _filtered(bundle, question)
    scored = _scored(bundle, asked, question, query_vector, table)
    if question.exclude_seen:
        eligible[asked.seen] = False
        eligible[_rows(bundle, recent.rejected)] = False
    chosen, scores, propensities, fused = _chosen(bundle, scored, eligible, question, request_id)
    why = [()] * len(chosen) if fused is None else reasons_for(bundle, asked.history, fused, chosen)
    rows = chosen.tolist()
    ids, titles = bundle.items.ids.at(rows), bundle.items.titles.at(rows)
    told = zip(ids, count(1), scores.tolist(), propensities.tolist(), titles, why, strict=False)
    items = tuple(starmap(Recommendation, told))
    return Slate(
        request_id=request_id,
        model_version=bundle.version,
        known_user=person.known or bool(recent.liked or recent.tried),
        items=items,
        ignored={"unknown_items": len(question.history) - len(given), **unknown},
        answered_from=scored.kinds,
        policy=EPSILON_GREEDY if question.explore else DETERMINISTIC,
    )


def _rows(bundle: Bundle, ids: Sequence[str]) -> np.ndarray:
    """Return the rows of the ids that the catalogue holds, int64, in their order."""
    if not ids:
        return _NO_ROWS
    found = map(bundle.items.index, ids)
    return np.array([row for row in found if row is not None], dtype=np.int64)


def _asked(
    bundle: Bundle,
    question: Question,
    recent: Recent,
    given: np.ndarray = _NO_ROWS,
    person: Person | None = None,
) -> Asked:
    """Put together what is known of the user, what happened since, and what the question names, in this order."""
    person = bundle.person(question.user_id) if person is None else person
    liked = _rows(bundle, recent.liked)
    blend = None if bundle.stream is None else bundle.stream.snapshot.blend
    # as the learner has it: what was tried is not shown again, unless repeats are allowed
    tried = _rows(bundle, recent.tried) if blend is not None else liked
    seen = liked if blend is None or blend.repeats else tried
    # what was liked since the snapshot is of the visit that goes on
    opens = not len(liked) and not len(given) and bundle.opens_visit(person, question.at)
    return Asked(
        history=_joined(person.history, liked, given),
        likes=person.likes + len(liked) + len(given),
        seen=_joined(person.seen, seen, given),
        habit=bundle.habit_of(person, opens=opens),
        tried=_joined(person.tried, tried, given),
        opens=opens,
    )


def _joined(*rows: np.ndarray) -> np.ndarray:
    joined: np.ndarray = np.concatenate(rows, dtype=np.int64)
    return joined


def _filtered(bundle: Bundle, question: Question) -> tuple[np.ndarray, dict[str, int]]:
    """Return which items the filters leave, bool [n], and how many names meant nothing."""
    ignored: dict[str, int] = {}
    allowed = np.ones(len(bundle.items), dtype=bool)
    if question.allow:
        rows = _rows(bundle, question.allow)
        allowed[:] = False
        allowed[rows] = True
        ignored["unknown_allow"] = len(question.allow) - len(rows)
    if question.categories:
        found = [bundle.items.within(category) for category in dict.fromkeys(question.categories)]
        within = np.zeros(len(allowed), dtype=bool)
        for members in found:
            if members is not None:
                within[members] = True
        allowed &= within
        ignored["unknown_categories"] = sum(members is None for members in found)
    if question.deny:
        rows = _rows(bundle, question.deny)
        allowed[rows] = False
        ignored["unknown_deny"] = len(question.deny) - len(rows)
    return allowed, ignored


def _chosen(
    bundle: Bundle, scored: Scored, eligible: np.ndarray, question: Question, request_id: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Fused | None]:
    """Return the rows of the slate, in its order, their scores, how probable each was, and what explains them."""
    wanted = pool_size(question.k) if question.diversity or question.explore else question.k
    pool, scores = scored.ranked(eligible, wanted)
    order = np.arange(len(pool))
    if question.diversity:
        first = spread_out(scores, bundle.model.item_vectors[pool], question.k, question.diversity)
        order = np.concatenate([first, np.delete(order, first)])
    propensities = np.ones(min(question.k, len(order)))
    if question.explore:
        # the id, which nobody can guess, decides: so the log alone says how a slate came about
        rng = rng_for("explore", request_id)
        places, propensities = explored(len(order), question.k, question.explore, rng)
        order = order[places]
    rows = pool[order[: question.k]]
    return rows, scores[order[: question.k]], propensities, scored.at(rows) if question.explain else None


def _scored(bundle: Bundle, asked: Asked, question: Question, query: np.ndarray | None, table: FusionTable) -> Scored:
    """Let the stream's blend answer where there is one; `table` weighs what there is otherwise."""
    stream = bundle.stream
    if stream is not None and stream.snapshot.blend is not None:
        return blended(bundle, stream, stream.snapshot.blend, asked, query)
    # what is filtered out still is among the items that scores are compared over: a filter changes no score
    unseen = np.ones(len(bundle.items), dtype=bool)
    if question.exclude_seen:
        unseen[asked.seen] = False
    return fuse(bundle, asked.history, query, unseen, table)


def similar(bundle: Bundle, item_id: str, k: int) -> SimilarItems:
    """Return the k items whose text is most like the item's, itself left out.

    Raises
    ------
    UnknownItem
        When the catalogue does not hold it.
    """
    checked_k(k)
    row = bundle.items.index(item_id)
    if row is None:
        raise UnknownItem(item_id)
    vectors = bundle.model.item_vectors
    others = np.ones(len(vectors), dtype=bool)
    others[row] = False
    pool = QuickScores((bundle.model.product(vectors[row]),), ()).shortlist(others, k)
    alike = vectors[pool].astype(np.float64) @ vectors[row].astype(np.float64)
    items = tuple(
        SimilarItem(bundle.items.ids[int(pool[i])], rank, float(alike[i]), bundle.items.titles[int(pool[i])])
        for rank, i in enumerate(np.argsort(-alike, kind="stable")[:k], start=1)
    )
    return SimilarItems(item_id, bundle.version, items)


def slate_payload(slate: Slate, *, explain: bool) -> dict[str, Any]:
    """Return the slate as JSON values; `reasons` only where they were asked for."""
    # field by field: dataclasses.asdict copies everything it meets, which took longer than choosing the items
    return {
        "request_id": slate.request_id,
        "model_version": slate.model_version,
        "known_user": slate.known_user,
        "items": [
            {
                "item_id": item.item_id,
                "rank": item.rank,
                "score": item.score,
                "propensity": item.propensity,
                "title": item.title,
                **({"reasons": tuple(asdict(reason) for reason in item.reasons)} if explain else {}),
            }
            for item in slate.items
        ],
        "ignored": dict(slate.ignored),
        "answered_from": list(slate.answered_from),
        "policy": slate.policy,
    }
