"""The streaming learner beside what it must be compared with, event by event on one stream."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from anabranch.provenance import commit, machine
from common.datasets.base import Dataset
from common.errors import InvalidSetting, UnknownName
from common.ids import stable_hash
from common.progress import Progress, silent
from common.settings import is_positive, was_tried
from stream.comparison import against, curve_of, paired_interval, row_of, slices_of
from stream.contest import ALLOWED, MASKED, RULES, Contender, ContestSettings, Learner, Trial, hold_contest
from stream.learner.blend import Blend
from stream.learner.content import Content
from stream.learner.controls import PeriodicEase, PersonalTop, RandomScores, RawTexts, RiverMF
from stream.learner.mf import MF
from stream.learner.neighbours import Neighbours
from stream.learner.pointwise import PointwiseMF
from stream.learner.popularity import DecayedPopularity, Popularity

OURS, WITHOUT_CONTENT, CONTENT, ZERO_SHOT = "ours", "ours_without_content", "content", "zero_shot"
LIKES_ONLY = "ours_likes_only"
DECAYED, NEIGHBOURS = "popularity_decayed", "neighbours"
MEMBERS = (NEIGHBOURS, "factors", CONTENT, DECAYED)
NO_RECENCY = 1e6
"""So slow a decay is none: the plain item-kNN that everybody knows."""
QUICK_DATA = "synthetic"
QUICK_EVENTS = 3_000
Make = Callable[[], Contender]
Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class StreamEvaluationSettings:
    """What is compared, and how.

    Parameters
    ----------
    warm_share
        Share of the likes, from the first on, that is learned and not tested.
    repeats
        Whether what a user liked before may be shown again, and is tested.
    seed
        Of the learners.
    ease_every
        Likes between two fits of EASE, one row each.
    ease_most_items
        With more candidates, EASE is left out: a fit inverts a matrix of their number.
    window
        Tests in a window of the McNemar test.
    events
        Only so many events, the first; None takes all.
    cold_share
        Share of the items that nobody learns in the test on cold items; 0 leaves it out.
    cold_warm_share
        Share of the likes that is learned before that test begins.
    rows
        Only these rows, and ours; empty for all.
    """

    warm_share: float = 0.2
    repeats: bool = False
    seed: int = 0
    ease_every: tuple[int, ...] = (1_000, 5_000)
    ease_most_items: int = 4_000
    window: int = 2_000
    events: int | None = None
    cold_share: float = 0.2
    cold_warm_share: float = 0.8
    rows: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0.0 <= self.cold_share < 1.0 or self.window < 2 or any(every < 1 for every in self.ease_every):
            raise InvalidSetting(
                f"cold_share {self.cold_share}, window {self.window}, ease_every {self.ease_every}",
                expected="from 0 to below 1, 2 or more, each 1 or more",
            )


def quick(settings: StreamEvaluationSettings) -> StreamEvaluationSettings:
    """Return the same in little."""
    return replace(settings, ease_every=(500,), window=400, events=QUICK_EVENTS)


@dataclass(frozen=True, slots=True)
class Texts:
    """Vectors of the items' texts, and where they come from.

    Parameters
    ----------
    vectors
        Item id to vector; empty for none.
    source
        In words.
    """

    vectors: Mapping[str, np.ndarray]
    source: str


NO_TEXTS = Texts({}, "none")


@dataclass(frozen=True, slots=True)
class StreamEvaluation:
    """All that was measured; `as_json` has the keys of the command line."""

    settings: StreamEvaluationSettings
    protocol: Mapping[str, Any]
    trial: Trial
    controls: tuple[str, ...]
    members: tuple[str, ...]
    cold: Mapping[str, Any] | None

    def as_json(self) -> dict[str, Any]:
        """Return one JSON-ready mapping."""
        names = list(self.trial.ranks)
        others = [name for name in names if name != OURS]
        return {
            "protocol": dict(self.protocol),
            "rows": {name: row_of(self.trial, name) for name in names},
            "controls": list(self.controls),
            "members": list(self.members),
            "slices": {name: slices_of(self.trial, name) for name in names},
            "against": against(self.trial, OURS, others, self.settings.window),
            "against_likes_only": against(self.trial, LIKES_ONLY, list(self.controls), self.settings.window)
            if LIKES_ONLY in names
            else None,
            "curves": {name: curve_of(self.trial, name) for name in names},
            "cold": None if self.cold is None else dict(self.cold),
        }


def control_rows(settings: StreamEvaluationSettings, items: int) -> dict[str, Make]:
    """Return the controls, name to what makes one."""
    seed = settings.seed
    rows: dict[str, Make] = {
        "random": lambda: RandomScores(seed),
        "popularity": lambda: Learner(Popularity()),
        "river_mf": lambda: RiverMF(0, seed=seed),
        "river_mf_negatives": lambda: RiverMF(10, seed=seed),
        "pointwise_mf": lambda: Learner(PointwiseMF(negatives=10, seed=seed)),
        "item_knn": lambda: Learner(Neighbours(gap=NO_RECENCY, recency=NO_RECENCY, beta=0.5, places=2048)),
    }
    if settings.repeats:
        rows |= {
            "personal_top": PersonalTop,
            "personal_top_earlier": lambda: PersonalTop(basket_last=True),
        }
    if items <= settings.ease_most_items:
        rows |= {f"ease_{every}": _ease(every) for every in sorted(settings.ease_every, reverse=True)}
    return rows


def _ease(every: int) -> Make:
    return lambda: PeriodicEase(every)


def our_rows(settings: StreamEvaluationSettings, texts: Texts) -> dict[str, Make]:
    """Return the blend, told all or likes only, with and without texts, and each member alone."""
    seed, repeats, vectors = settings.seed, settings.repeats, texts.vectors

    def blend(texts: Mapping[str, np.ndarray], *, likes_only: bool = False) -> Contender:
        told = not likes_only
        return Learner(Blend(seed=seed, repeats=repeats), texts=texts, dislikes=told, tries=told)

    rows: dict[str, Make] = {OURS: lambda: blend(vectors), LIKES_ONLY: lambda: blend(vectors, likes_only=True)}
    if vectors:
        rows[WITHOUT_CONTENT] = lambda: blend({})
        rows[CONTENT] = lambda: Learner(Content(), texts=vectors)
    return {
        **rows,
        NEIGHBOURS: lambda: Learner(Neighbours()),
        "factors": lambda: Learner(MF(seed=seed)),
        "popularity_decayed": lambda: Learner(DecayedPopularity()),
    }


def evaluate_stream(
    dataset: Dataset,
    settings: StreamEvaluationSettings,
    texts: Texts = NO_TEXTS,
    *,
    progress: Progress = silent,
    note: Note = lambda text: None,
) -> StreamEvaluation:
    """Hold the contest, and the one on cold items.

    Parameters
    ----------
    dataset
        Its interactions in time order.
    settings
        What and how.
    texts
        Text vectors of the items; those of items without one are zeros.
    progress, note
        Told how far it is; told in words.

    Raises
    ------
    EmptyData
        When there is nothing to learn or to test.
    """
    events = dataset.interactions[: settings.events]
    controls = control_rows(settings, len({event.item_id for event in events if is_positive(event)}))
    ours = our_rows(settings, texts)
    if all(is_positive(event) for event in events):
        del ours[LIKES_ONLY]  # it would be the same
    if not any(was_tried(event) for event in events):
        del controls["river_mf"]  # it learns stars, and there are none
    controls, ours = _chosen(controls, ours, settings.rows)
    note(f"{len(controls) + len(ours)} rows over {len(events)} events; texts: {texts.source}")
    contest = ContestSettings(warm_share=settings.warm_share, repeats=settings.repeats)
    trial = hold_contest(events, {**controls, **ours}, contest, progress=progress)
    cold = _cold(dataset, settings, texts, progress) if settings.cold_share and texts.vectors else None
    protocol = {
        "data": dataset.name,
        "events": len(events),
        "likes": trial.learned,
        "users": len({event.user_id for event in events}),
        "candidate_items": len(trial.candidates),
        "test_events": len(trial.user),
        "test_events_further_in_a_basket": int(trial.inside.sum()),
        "warm_share": settings.warm_share,
        "k": trial.k,
        "repeats": ALLOWED if settings.repeats else MASKED,
        **RULES,
        "texts": texts.source,
        "intervals": "95%, clustered by user; differences paired",
        "mcnemar": f"windows of {settings.window} tests, each half a window on, at 1 per cent",
        "river_answers": "from a mirror of its rows: its own ranking takes milliseconds",
        "seed": settings.seed,
        "commit": commit(),
        "machine": machine("cpu"),
    }
    members = tuple(name for name in MEMBERS if name in ours)
    # a recency-aware item-kNN and decayed popularity are what others would use alone
    told = (*controls, *(name for name in members if name in (DECAYED, NEIGHBOURS)))
    return StreamEvaluation(settings, protocol, trial, told, members, cold)


def _chosen(
    controls: dict[str, Make], ours: dict[str, Make], wanted: tuple[str, ...]
) -> tuple[dict[str, Make], dict[str, Make]]:
    """Return the rows that are wanted, ours always; all of them when none is named."""
    known = {*controls, *ours}
    for name in wanted:
        if name not in known:
            raise UnknownName("row", name, sorted(known))
    kept = {OURS, *wanted} if wanted else known
    return (
        {name: make for name, make in controls.items() if name in kept},
        {name: make for name, make in ours.items() if name in kept},
    )


def cold_items(items: set[str], share: float, seed: int) -> frozenset[str]:
    """Return the share of the items that a stable hash chooses."""
    return frozenset(item for item in items if stable_hash(seed, "cold", item) / 2**64 < share)


def _cold(
    dataset: Dataset, settings: StreamEvaluationSettings, texts: Texts, progress: Progress
) -> Mapping[str, Any] | None:
    """Test on items that nobody ever learns, ranked among themselves."""
    events = dataset.interactions[: settings.events]
    hidden = cold_items({event.item_id for event in events}, settings.cold_share, settings.seed)
    rows = our_rows(settings, texts)
    names = (OURS, WITHOUT_CONTENT, CONTENT)
    contenders: dict[str, Make] = {
        "random": lambda: RandomScores(settings.seed),
        ZERO_SHOT: lambda: RawTexts(texts.vectors),
        **{name: rows[name] for name in names},
    }
    contest = ContestSettings(warm_share=settings.cold_warm_share, repeats=settings.repeats, hidden=hidden)
    trial = hold_contest(events, contenders, contest, progress=progress)
    found = {name: row_of(trial, name) for name in contenders}
    recall = f"recall@{trial.k}"

    def times(other: str) -> float | None:
        return found[OURS][recall] / found[other][recall] if found[other][recall] else None

    difference, interval = paired_interval(trial, OURS, ZERO_SHOT)
    return {
        "items": len(set(trial.candidates) & hidden),
        "test_events": len(trial.user),
        "rows": found,
        "times_random": times("random"),
        "times_zero_shot": times(ZERO_SHOT),
        "against_zero_shot": {"difference": difference, "ci95": list(interval)},
    }


def texts_of(
    dataset: Dataset, source: str, cache: Path, *, encoder: str = "minilm", device: str = "auto", seed: int = 0,
    progress: Progress = silent,
) -> Texts:  # fmt: skip
    """Return text vectors of all items.

    Parameters
    ----------
    dataset
        Whose items.
    source
        "zero-shot": the encoder as it is; "none": no texts; otherwise a store, for its current model.
    cache
        Folder that remembers what the encoder computed.
    encoder, device, seed
        Of "zero-shot".
    progress
        Told how far it is.

    Raises
    ------
    NoModel
        When the store holds none.
    """
    if source == "none":
        return NO_TEXTS
    ids = dataset.catalogue.ids
    if source == "zero-shot":
        from anabranch.simulation import initial_vectors
        from common.encoder.adapter import TextEncoder
        from common.encoder.cache import open_or_build
        from common.encoder.spec import EncoderSpec

        read = TextEncoder.load(EncoderSpec.from_name(encoder), device)
        built = open_or_build(cache, read, dataset.catalogue.texts, progress)
        vectors = initial_vectors(read, built, seed)
        return Texts(dict(zip(ids, vectors, strict=True)), f"{encoder} without training")
    from server.registry import Registry
    from server.serving.bundle import load_model

    registry = Registry.open(Path(source))
    model = load_model(registry)
    known = dict(zip(registry.catalogue.ids, model.item_vectors, strict=True))
    told = f"model {model.manifest.version} of {source}: what it was trained on may lie in the test"
    return Texts({item: known[item] for item in ids if item in known}, told)
