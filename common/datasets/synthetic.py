"""Made-up users with drifting tastes over made-up items with real words: any size, from a seed, with no network."""

from dataclasses import dataclass

import numpy as np

from common.datasets.base import Dataset
from common.datasets.words import FORMS, TOPICS
from common.errors import InvalidSetting
from common.events import Interaction
from common.ids import rng_for
from common.items import Catalogue, Item

NAME = "synthetic"
LICENCE = "made up by the program; free of rights"

START_MS = 1_704_067_200_000
"""2024-01-01 UTC."""
SPAN_MS = 90 * 24 * 3600 * 1000
LATE_SHARE = 0.2
"""Share of the items that are published while the clicks go on: cold items to recommend."""
ZIPF = 0.9
FOCUS, SECOND = 0.75, 0.15
"""Share of a user's clicks within the present focus, and within a lasting second taste; the rest is anything."""
DRIFT, LEAP = 0.04, 0.01
"""Chance, each click, that the focus moves to a neighbouring topic, or to any topic."""
NEW_SESSION = 0.15
ACTIVITY = 0.7
"""Spread of the log-normal law by which some users click more than others."""
_REDRAWS = 10
"""How often a repeated item is drawn again: half the times of its own topic, then of any."""


@dataclass(frozen=True, slots=True)
class SyntheticSpec:
    """How large the made-up data set is.

    Parameters
    ----------
    users, items, events
        Counts; every user gets at least one event.
    """

    users: int = 500
    items: int = 500
    events: int = 10_000

    def __post_init__(self) -> None:
        for name in ("users", "items", "events"):
            if getattr(self, name) < 1:
                raise InvalidSetting(f"synthetic {name}={getattr(self, name)}", expected="at least 1")
        if self.events < self.users:
            raise InvalidSetting(
                f"synthetic events={self.events} for users={self.users}", expected="at least one event a user"
            )


def parse_spec(name: str) -> SyntheticSpec:
    """Read "synthetic" or "synthetic:users=1000,items=500,events=20000"; events default to 20 a user.

    Raises
    ------
    InvalidSetting
        For a key that is not known or a number that is none.
    """
    given: dict[str, int] = {}
    _, _, options = name.partition(":")
    for option in filter(None, options.split(",")):
        key, _, number = option.partition("=")
        key, number = key.strip(), number.strip().replace("_", "")
        if key not in ("users", "items", "events") or not (number.isascii() and number.isdigit() and len(number) < 12):
            raise InvalidSetting(
                f"{option!r} in {name!r}", expected="users=N, items=N or events=N, separated by commas"
            )
        given[key] = int(number)
    if "users" in given:
        given.setdefault("events", 20 * given["users"])
    return SyntheticSpec(**given)


def make_synthetic(spec: SyntheticSpec, seed: int, name: str = NAME) -> Dataset:
    """Make the data set; the same arguments give the same one.

    Every user has a focus, a topic that drifts along a ring of topics, and a lasting second taste. A click falls in the
    focus mostly, so the topic of the next click can be told from the texts of the last ones. Within a topic items are
    clicked by a Zipf law, from their publication on. Users avoid what they clicked before, as far as items last.
    """
    items, topic_of, published = _items(spec, seed)
    user_of, ts = _moments(spec, seed)
    topics = _topics(spec, user_of, seed)
    chosen = _choose(topics, ts, user_of, topic_of, published, seed)
    order = np.argsort(ts, kind="stable")
    user_ids = [f"u{number}" for number in range(spec.users)]
    item_ids = [item.item_id for item in items]
    nothing: dict[str, object] = {}
    events = tuple(
        # one empty mapping for all: two of their own would be half of an event's memory
        Interaction(
            f"synthetic-{seed}-{row}", user_ids[user], item_ids[item], "click", when, 1.0, None, nothing, nothing
        )
        for row, (user, item, when) in enumerate(
            zip(user_of[order].tolist(), chosen[order].tolist(), ts[order].tolist(), strict=True)
        )
    )
    return Dataset(name, Catalogue(items), events, LICENCE, f"seed {seed}")


def _items(spec: SyntheticSpec, seed: int) -> tuple[list[Item], np.ndarray, np.ndarray]:
    """Return the items, their topics int64 [n] and their publication times int64 [n], in ms."""
    rng = rng_for(NAME, "items", seed, spec.items)
    names = list(TOPICS)
    topic_of = rng.permutation(np.arange(spec.items) % len(names))
    published = START_MS - rng.integers(1, SPAN_MS, spec.items)
    late = rng.random(spec.items) < LATE_SHARE
    published[late] = START_MS + rng.integers(0, SPAN_MS, int(late.sum()))
    for topic in range(min(len(names), spec.items)):
        # every topic has an item from the start, so that every click has something to fall on
        first = int(np.flatnonzero(topic_of == topic)[0])
        published[first] = min(int(published[first]), START_MS - 1)
    forms = rng.integers(0, len(FORMS), spec.items)
    items = []
    for number in range(spec.items):
        topic = names[topic_of[number]]
        words = [TOPICS[topic][place] for place in rng.choice(len(TOPICS[topic]), 7, replace=False)]
        named = {key: word.capitalize() for key, word in zip("abc", words, strict=False)}
        title = FORMS[forms[number]].format(**named)
        text = f"{title}. {topic}: {', '.join(words[3:])}"
        items.append(Item(f"i{number}", title, text, (topic,), int(published[number])))
    return items, topic_of, published


def _moments(spec: SyntheticSpec, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each event's user int64 [e], grouped, and its time in ms int64 [e], rising within a user."""
    rng = rng_for(NAME, "moments", seed, spec.users, spec.events)
    activity = rng.lognormal(0.0, ACTIVITY, spec.users)
    counts = 1 + rng.multinomial(spec.events - spec.users, activity / activity.sum())
    user_of = np.repeat(np.arange(spec.users), counts)
    pause = rng.random(spec.events) < NEW_SESSION
    gaps = np.where(pause, rng.exponential(3 * 24 * 3600.0, spec.events), 5 + rng.exponential(60.0, spec.events))
    firsts = np.cumsum(counts) - counts
    gaps[firsts] = 0.0
    elapsed = np.cumsum(gaps)
    elapsed -= np.repeat(elapsed[firsts], counts)
    start = rng.random(spec.users) * 0.8
    last = np.maximum(elapsed[firsts + counts - 1], 1.0)
    # who would click past the end clicks faster
    room = (1.0 - start) * rng.uniform(0.7, 1.0, spec.users) * (SPAN_MS / 1000.0)
    squeeze = np.minimum(1.0, room / last)
    seconds = np.repeat(start * (SPAN_MS / 1000.0), counts) + elapsed * np.repeat(squeeze, counts)
    return user_of, START_MS + np.round(seconds * 1000.0).astype(np.int64)


def _topics(spec: SyntheticSpec, user_of: np.ndarray, seed: int) -> np.ndarray:
    """Return the topic of each event, int64 [e]: focus, second taste or anything."""
    rng = rng_for(NAME, "topics", seed, spec.users, spec.events)
    count = min(len(TOPICS), spec.items)
    draw = rng.random(spec.events)
    steps = np.where(draw < DRIFT, rng.choice((-1, 1), spec.events), 0)
    steps = np.where(draw > 1.0 - LEAP, rng.integers(0, count, spec.events), steps)
    walked = np.cumsum(steps)
    firsts = np.flatnonzero(np.r_[True, user_of[1:] != user_of[:-1]])
    start = rng.integers(0, count, spec.users) - walked[firsts]
    focus = (start[user_of] + walked) % count
    second = rng.integers(0, count, spec.users)[user_of]
    kind = rng.random(spec.events)
    anything = rng.integers(0, count, spec.events)
    return np.where(kind < FOCUS, focus, np.where(kind < FOCUS + SECOND, second, anything))


def _choose(
    topics: np.ndarray,
    ts: np.ndarray,
    user_of: np.ndarray,
    topic_of: np.ndarray,
    published: np.ndarray,
    seed: int,
) -> np.ndarray:
    """Return the item of each event, int64 [e]: of its topic, published by then, by a Zipf law, not twice a user."""
    rng = rng_for(NAME, "choice", seed, len(topics), len(topic_of))
    shelves = []
    for topic in range(int(topic_of.max()) + 1):
        members = np.flatnonzero(topic_of == topic)
        members = members[np.argsort(published[members], kind="stable")]
        weights = 1.0 / np.power(1.0 + rng.permutation(len(members)), ZIPF)
        shelves.append((members, published[members], np.cumsum(weights)))
    topics = topics.copy()
    chosen = np.zeros(len(topics), dtype=np.int64)
    pending = np.arange(len(topics))
    for attempt in range(1 + _REDRAWS):
        if attempt > _REDRAWS // 2:
            topics[pending] = rng.integers(0, len(shelves), len(pending))
        for topic, (members, since, mass) in enumerate(shelves):
            rows = pending[topics[pending] == topic]
            out = np.searchsorted(since, ts[rows], side="right")
            picks = np.searchsorted(mass, rng.random(len(rows)) * mass[out - 1], side="right")
            chosen[rows] = members[np.minimum(picks, out - 1)]
        pending = _repeats(user_of, chosen, len(topic_of))
        if not len(pending):
            break
    return chosen


def _repeats(user_of: np.ndarray, chosen: np.ndarray, items: int) -> np.ndarray:
    """Return the rows whose user has the same item in an earlier row."""
    pairs = user_of * items + chosen
    order = np.argsort(pairs, kind="stable")
    again = np.r_[False, pairs[order][1:] == pairs[order][:-1]]
    return np.sort(order[again])
