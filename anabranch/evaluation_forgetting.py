"""What the learners keep of old windows of the stream, and what they bring to new ones, beside three controls."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from anabranch.evaluation_stream import NO_TEXTS, Texts
from anabranch.provenance import commit, machine
from common.datasets.base import Dataset
from common.errors import UnknownName
from common.progress import Progress, silent
from stream.contest import ALLOWED, MASKED
from stream.forgetting import RULES, Examination, ForgettingSettings, Student, examine
from stream.learner.blend import Blend
from stream.learner.mf import MF
from stream.students import FineTuned, Frozen, Live, Refitted
from stream.transfer import differences, row_of

OURS, FACTORS, WITH_TEXTS, RECALLING = "ours", "mf", "mf_texts", "mf_replay"
FROZEN, FINE_TUNED, REFITTED = "frozen", "fine_tune", "refit"
CONTROLS = (FROZEN, FINE_TUNED, REFITTED)
QUICK_DATA = "synthetic"
QUICK_EVENTS = 3_000
TEXT_DIMENSIONS = 64
REPLAY = 20
Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ForgettingEvaluationSettings:
    """What is compared, and how.

    Parameters
    ----------
    examination
        Windows, what is held out, and the length of the lists.
    seed
        Of the learners.
    ease_most_items
        With more candidates, the refitted EASE is left out: a fit inverts a matrix of their number.
    events
        Only so many events, the first; None takes all.
    rows
        Only these rows, and ours; empty for all.
    """

    examination: ForgettingSettings = field(default_factory=ForgettingSettings)
    seed: int = 0
    ease_most_items: int = 4_000
    events: int | None = None
    rows: tuple[str, ...] = ()


def quick(settings: ForgettingEvaluationSettings) -> ForgettingEvaluationSettings:
    """Return the same in little."""
    return replace(settings, events=QUICK_EVENTS)


@dataclass(frozen=True, slots=True)
class ForgettingEvaluation:
    """All that was measured; `as_json` has the keys of the command line."""

    protocol: Mapping[str, Any]
    examination: Examination
    controls: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return one JSON-ready mapping."""
        return {
            "protocol": dict(self.protocol),
            "rows": {name: row_of(self.examination, name) for name in self.examination.ranks},
            "controls": list(self.controls),
            "against": differences(self.examination, OURS),
        }


def students_of(settings: ForgettingEvaluationSettings, texts: Texts, items: int) -> dict[str, Callable[[], Student]]:
    """Return the rows, name to what makes one.

    Raises
    ------
    UnknownName
        When a row is wanted that there is not.
    """
    seed, repeats, vectors = settings.seed, settings.examination.repeats, texts.vectors
    rows: dict[str, Callable[[], Student]] = {
        OURS: lambda: Live(Blend(seed=seed, repeats=repeats), vectors),
        FACTORS: lambda: Live(MF(seed=seed)),
        WITH_TEXTS: lambda: Live(MF(seed=seed, text_dimensions=TEXT_DIMENSIONS), vectors),
        RECALLING: lambda: Live(MF(seed=seed, replay=REPLAY)),
        FROZEN: lambda: Frozen(Live(Blend(seed=seed, repeats=repeats), vectors)),
        FINE_TUNED: lambda: FineTuned(seed),
        REFITTED: Refitted,
    }
    if items > settings.ease_most_items:
        del rows[REFITTED]
    if not vectors:
        del rows[WITH_TEXTS]
    for name in settings.rows:
        if name not in rows:
            raise UnknownName("row", name, sorted(rows))
    return {name: make for name, make in rows.items() if name in {OURS, *(settings.rows or rows)}}


def evaluate_forgetting(
    dataset: Dataset,
    settings: ForgettingEvaluationSettings,
    texts: Texts = NO_TEXTS,
    *,
    progress: Progress = silent,
    note: Note = lambda text: None,
) -> ForgettingEvaluation:
    """Teach every row window by window, and ask it all held-out likes after each.

    Parameters
    ----------
    dataset
        Its interactions in time order.
    settings
        What and how.
    texts
        Text vectors of the items, for the blend.
    progress, note
        Told how far it is; told in words.

    Raises
    ------
    EmptyData
        When a window has nothing to teach or nothing to ask.
    """
    events = dataset.interactions[: settings.events]
    students = students_of(settings, texts, len({event.item_id for event in events}))
    note(f"{len(students)} rows over {len(events)} events; texts: {texts.source}")
    found = examine(events, students, settings.examination, progress=progress)
    plan, asked = found.plan, settings.examination
    protocol = {
        "data": dataset.name,
        "events": len(events),
        "users": len(plan.liked),
        "candidate_items": len(plan.items),
        "windows": [
            {
                "from_ms": first,
                "to_ms": last,
                "taught": sum(feedback.sign > 0 for _, feedback in lessons),
                "tested": int((found.window == window).sum()),
            }
            for window, ((first, last), lessons) in enumerate(zip(plan.bounds, plan.lessons, strict=True))
        ],
        "test_events": len(plan.questions),
        "held_out_every": asked.every,
        "k": asked.k,
        "repeats": ALLOWED if asked.repeats else MASKED,
        **RULES,
        "texts": texts.source,
        "intervals": "95%, clustered by user; differences paired",
        "seed": settings.seed,
        "commit": commit(),
        "machine": machine("cpu"),
    }
    return ForgettingEvaluation(protocol, found, tuple(name for name in CONTROLS if name in students))
