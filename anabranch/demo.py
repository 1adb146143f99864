"""The main job on one machine: federated rounds, a clickstream, and questions over HTTP, all on real data."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from anabranch.item_texts import NewestTexts
from anabranch.recommender import lazy_queries
from anabranch.simulation import Simulation, SimulationResult, SimulationSettings
from common.clock import Clock, wall_clock
from common.datasets.base import Dataset
from common.errors import ServiceError
from common.events import Interaction
from common.progress import Progress, silent
from common.settings import is_positive
from server.serving.app import create_app
from server.serving.reload import ReloadingSource
from server.serving.run import serve_in_thread
from stream.broker import EmbeddedBroker
from stream.checkpoint import CheckpointStore
from stream.consumer import LearnReport, StreamWorker, WorkerSettings
from stream.kafka_log import KafkaLog
from stream.learner.blend import Blend
from stream.producer import ProduceReport, produce

Note = Callable[[str], None]
TOPIC = "clicks"
SILENCE_S = 30.0
"""The worker gives up after so long without a record; the producer runs beside it."""
ANSWER_S = 60.0
"""Patience with an answer; the first query loads the encoder."""
K = 5


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """How much of the job to do.

    Parameters
    ----------
    federated
        The rounds.
    events
        Events to stream, the earliest first; None streams all.
    query
        The text query; None makes one of the catalogue's categories.
    servers
        Kafka to stream through; None starts the embedded broker.
    """

    federated: SimulationSettings
    events: int | None = None
    query: str | None = None
    servers: str | None = None


def full_settings(settings: SimulationSettings) -> DemoSettings:
    """Return the whole job: a few minutes on two cores."""
    return DemoSettings(replace(settings, resume=True))


def quick_settings(settings: SimulationSettings) -> DemoSettings:
    """Return the short job: the same path with fewer rounds, smaller steps and fewer events."""
    terms = replace(settings.privacy, sample_rate=settings.privacy.sample_rate / 2)
    return DemoSettings(replace(settings, rounds=QUICK_ROUNDS, privacy=terms, resume=True), events=QUICK_EVENTS)


QUICK_ROUNDS = 3
QUICK_EVENTS = 10_000


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the three parts gave; `as_json` has the keys of the command line."""

    federated: SimulationResult
    stream: LearnReport
    produced: ProduceReport
    questions: Mapping[str, Mapping[str, Any]]
    answers: Mapping[str, Mapping[str, Any]]
    store: Path
    seconds: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        """Return one JSON-ready mapping."""
        return {
            "federated": self.federated.as_json(),
            "stream": {**asdict(self.stream), "produced": asdict(self.produced)},
            "query": {
                name: {"question": dict(self.questions[name]), **answer} for name, answer in self.answers.items()
            },
            "store": str(self.store),
            "seconds": dict(self.seconds),
        }


def run_demo(
    dataset: Dataset,
    store: Path,
    settings: DemoSettings,
    *,
    progress: Progress = silent,
    note: Note = lambda text: None,
    clock: Clock = wall_clock,
) -> DemoResult:
    """Do the main job; what the store already holds is not done again.

    Parameters
    ----------
    dataset
        Items and interactions.
    store
        Folder of models; made when missing, continued when not.
    settings
        How much to do.
    progress, note
        Told how far it is; told in words.
    clock
        Wall clock.

    Raises
    ------
    AnabranchError
        When a part fails, naming it; the store keeps what was finished.
    """
    began = time.monotonic()
    note(f"1/3 federated: {settings.federated.rounds} rounds over {settings.federated.clients} nodes")
    federated = Simulation(dataset, store, settings.federated, progress=progress, note=note, clock=clock).run()
    trained = time.monotonic()
    note("2/3 streaming: every click through a Kafka topic into the incremental model")
    learned, produced = _stream(dataset, store, settings, progress=progress, note=note, clock=clock)
    streamed = time.monotonic()
    note("3/3 asking the newest global model over HTTP")
    questions = _questions(dataset, settings)
    answers = _ask(store, questions, device=settings.federated.device)
    seconds = {
        "federated": trained - began,
        "stream": streamed - trained,
        "query": time.monotonic() - streamed,
        "total": time.monotonic() - began,
    }
    return DemoResult(federated, learned, produced, questions, answers, store, seconds)


# -- the stream ------------------------------------------------------------------------------------------------------


def _stream(
    dataset: Dataset, store: Path, settings: DemoSettings, *, progress: Progress, note: Note, clock: Clock
) -> tuple[LearnReport, ProduceReport]:
    """Produce and learn at the same time, through the embedded broker unless another one was named."""
    events = dataset.interactions[: settings.events]
    if settings.servers is not None:
        return _stream_through(settings.servers, dataset, events, store, progress=progress, note=note, clock=clock)
    with EmbeddedBroker() as broker:
        servers = broker.bootstrap_servers
        return _stream_through(servers, dataset, events, store, progress=progress, note=note, clock=clock)


def _stream_through(
    servers: str,
    dataset: Dataset,
    events: Sequence[Interaction],
    store: Path,
    *,
    progress: Progress,
    note: Note,
    clock: Clock,
) -> tuple[LearnReport, ProduceReport]:
    checkpoint = CheckpointStore(store).newest(note)
    known = int(checkpoint.details["events"]) if checkpoint else 0
    if known >= len(events):
        note(f"all {known} events are in the store; nothing to stream")
    halt = threading.Event()
    # one partition: the clicks arrive in the order of their times, so the same data gives the same state
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="producer") as pool:
        sending = pool.submit(
            produce,
            events,
            log=KafkaLog(servers),
            topic=TOPIC,
            partitions=1,
            start_at=min(known, len(events)),
            stopping=halt.is_set,
        )
        try:
            worker = StreamWorker(
                WorkerSettings(
                    servers=servers,
                    topic=TOPIC,
                    store=store,
                    until_events=max(known, len(events)),
                    idle_timeout_s=SILENCE_S,
                    # the embedded broker forgets its topics when it stops; what was learned from them stays
                    on_new_topic="continue",
                ),
                Blend(),
                items=dataset.catalogue.ids,
                texts=NewestTexts(store, note),
                stopping=lambda: _failed(sending),
                notice=note,
                progress=progress,
                clock=clock,
            )
            learned = worker.run()
        finally:
            halt.set()
        return learned, sending.result()


def _failed(sending: Future[ProduceReport]) -> bool:
    return sending.done() and sending.exception() is not None


# -- the questions ---------------------------------------------------------------------------------------------------


def _questions(dataset: Dataset, settings: DemoSettings) -> dict[str, dict[str, Any]]:
    """Return three questions that the data itself suggests: a known user, a new user with likes, a text."""
    liked = [event for event in dataset.interactions[: settings.events] if is_positive(event)]
    clicks = Counter(event.user_id for event in liked)
    newest = next(event.user_id for event in reversed(liked) if clicks[event.user_id] >= K)
    popular = [item_id for item_id, _ in Counter(event.item_id for event in liked).most_common()]
    return {
        "known_user": {"user_id": newest, "k": K, "explain": True},
        "new_user": {"history": _alike(dataset, popular), "k": K, "explain": True},
        "text": {"query": settings.query or _query(dataset, popular), "k": K, "explain": True},
    }


def _alike(dataset: Dataset, popular: list[str]) -> list[str]:
    """Return up to three popular items that share a category with the most popular one."""
    rows = [row for item_id in popular if (row := dataset.catalogue.index(item_id)) is not None]
    taste = set(dataset.catalogue[rows[0]].categories[-1:])
    alike = [row for row in rows if not taste or taste & set(dataset.catalogue[row].categories)]
    return [dataset.catalogue[row].item_id for row in alike[:3]]


def _query(dataset: Dataset, popular: list[str]) -> str:
    """Return a text query: about space for films, else the words of a popular item."""
    if dataset.name.startswith("movielens"):
        return "an adventure in space"
    row = dataset.catalogue.index(popular[0]) or 0
    return " ".join(dataset.catalogue[row].text.split()[:6])


def _ask(store: Path, questions: Mapping[str, Mapping[str, Any]], device: str) -> dict[str, dict[str, Any]]:
    """Start the service on the store, ask over HTTP, and stop it."""
    answers: dict[str, dict[str, Any]] = {}
    source = ReloadingSource(store)
    app = create_app(source, lazy_queries(device))
    with (
        source.polling(),
        serve_in_thread(app) as service,
        httpx.Client(base_url=service.url, timeout=ANSWER_S) as client,
    ):
        for name, question in questions.items():
            response = client.post("/v1/recommendations", json=question)
            if response.is_error:
                raise ServiceError(
                    f"the service answered {response.status_code} to question {name!r}: {response.text[:200]}"
                )
            answers[name] = response.json()
    return answers
