"""The HTTP edge: it checks, asks the pure functions, and says what went wrong; nothing else."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Path, Query
from fastapi.openapi.utils import get_openapi
from fastapi.responses import PlainTextResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware

from common.clock import Clock, wall_clock
from common.events import MAX_ID_LENGTH
from common.recent import NOTHING, RecentEvents
from server.serving import problems
from server.serving.access import OPEN, Access, Patience, checked_origins
from server.serving.bundle import Bundle, BundleSource
from server.serving.console import add_console
from server.serving.events import EventSink, NoBroker, event_of
from server.serving.keys import KeyFile
from server.serving.limits import DEFAULT_LIMITS, Limits, TokenBuckets
from server.serving.metrics import CONTENT_TYPE, Measured, ServiceMetrics
from server.serving.problems import Problem, problem_responses
from server.serving.query import QueryTexts
from server.serving.quick_route import QuickRoute
from server.serving.recommend import MAX_K, Question, RequestIds, random_request_id, recommend, similar, slate_payload
from server.serving.schemas import (
    EventOut,
    EventRequest,
    HealthOut,
    ModelOut,
    ModelsOut,
    ReadyOut,
    RecommendationRequest,
    SimilarOut,
    SlateOut,
)
from server.serving.slate_log import SlateLog

QUICK_ITEMS = 200_000
"""Up to so many items a plain question is answered where it came in, and nothing else meanwhile."""
App = FastAPI
"""What `create_app` gives, by a name that needs no web framework."""
Answer = Callable[[Question], Awaitable[Response]]
UserId = Annotated[str, Path(min_length=1, max_length=MAX_ID_LENGTH, examples=["196"])]
ItemId = Annotated[str, Path(min_length=1, max_length=MAX_ID_LENGTH, examples=["50"])]
KParameter = Annotated[int, Query(ge=1, le=MAX_K, description="How many items")]


@dataclass(frozen=True, slots=True)
class Answering:
    """What questions are answered with.

    Parameters
    ----------
    source
        Gives the bundle that each request is answered from.
    queries
        Encodes query texts.
    new_id
        Gives request ids.
    live
        What users did since the snapshot; None leaves it at the snapshot.
    clock
        When a question is asked that does not say so.
    explore
        Of questions that do not say.
    """

    source: BundleSource
    queries: QueryTexts
    new_id: RequestIds = random_request_id
    live: RecentEvents | None = None
    clock: Clock = wall_clock
    explore: float = 0.0

    def is_quick(self, question: Question) -> bool:
        """Tell whether an answer takes a few milliseconds at most, so that handing it to a thread costs more."""
        plain = question.query is None and not question.explain and not question.diversity
        return plain and len(self.source.bundle().items) <= QUICK_ITEMS

    def completed(self, question: Question) -> Question:
        """Return the question with what it leaves to the service."""
        return replace(question, at=self.asked_at(question.at), explore=self.explored(question.explore))

    def asked_at(self, at: int | None) -> int:
        """Return when a question is asked that says so, or does not."""
        return self.clock() if at is None else at

    def explored(self, explore: float | None) -> float:
        """Return how often a question explores that says so, or does not."""
        return self.explore if explore is None else explore

    def slate(self, question: Question) -> dict[str, Any]:
        """Answer a question, with what it leaves to the service."""
        return self.slate_of(self.completed(question))

    def slate_of(self, question: Question) -> dict[str, Any]:
        """Answer a completed question from one bundle, taken once: query, items, clicks and version belong together."""
        bundle = self.source.bundle()
        vector = None if question.query is None else self.queries.vector(bundle.model, question.query)
        recent = NOTHING
        if self.live is not None and question.user_id is not None:
            offsets = {} if bundle.stream is None else bundle.stream.snapshot.offsets
            recent = self.live.since(question.user_id, offsets)
        slate = recommend(bundle, question, vector, self.new_id(), recent=recent)
        return slate_payload(slate, explain=question.explain)


def create_app(
    source: BundleSource,
    queries: QueryTexts,
    *,
    clock: Clock = wall_clock,
    new_id: RequestIds = random_request_id,
    limits: Limits = DEFAULT_LIMITS,
    keys: KeyFile | None = None,
    origins: Sequence[str] = (),
    events: EventSink | None = None,
    live: RecentEvents | None = None,
    slates: SlateLog | None = None,
    process: str | None = None,
    explore: float = 0.0,
) -> FastAPI:
    """Build the service.

    Parameters
    ----------
    source
        Gives the bundle that each request is answered from.
    queries
        Encodes query texts.
    clock
        For ages, and the time of questions and events that have none.
    new_id
        Gives request ids, and ids of events that have none.
    limits
        What is refused.
    keys
        Who may ask; None asks for no key, and lets in only what names this machine.
    origins
        Whose pages may ask from a browser; none, unless they are named.
    events
        Where events are sent; None refuses them.
    live
        What users did since the snapshot.
    slates
        Where slates are logged; None logs none.
    process
        Names this process where several answer; None for one alone.
    explore
        How often a slot is given to any of the items in question, where a question does not say; see
        `server.serving.exploration`.
    """
    app = FastAPI(
        title="Anabranch",
        version="1",
        description="What next for this user, this text, this history.",
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
    )
    metrics = ServiceMetrics(source, live, clock, process)
    answering = Answering(source, queries, new_id, live, clock, explore)
    _add_questions(app, source, answering, _answer_with(answering, metrics, slates))
    problems.install(app, limits.body_bytes)
    # the last one added is asked first
    app.add_middleware(Patience, limits=limits)
    buckets = TokenBuckets(limits.rate, limits.burst) if limits.rate else None
    app.add_middleware(Access, keys=keys, buckets=buckets)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=checked_origins(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )
    app.add_middleware(Measured, metrics=metrics)

    _add_events(app, events or NoBroker(), metrics, new_id, clock)
    _add_state(app, source, clock, metrics)
    add_console(app)
    _describe(app, needs_key=keys is not None)
    return app


def _answer_with(answering: Answering, metrics: ServiceMetrics, slates: SlateLog | None) -> Answer:
    """Return what gives the answer to a completed question, counted and logged."""

    def slate_of(question: Question) -> Response:
        slate = answering.slate_of(question)
        metrics.slate(known_user=slate["known_user"])
        if slates is not None:
            asked = asdict(question)
            # what was typed stays out: it may say more of a person than ids do
            asked["query"] = question.query is not None
            slates.add(answering.clock(), asked, slate)
        # not through the response model: it would be validated and copied once more
        return Response(msgspec.json.encode(slate), media_type="application/json")

    async def answer(question: Question) -> Response:
        if slates is None and answering.is_quick(question):
            return slate_of(question)
        return await run_in_threadpool(slate_of, question)

    return answer


def _add_events(app: FastAPI, sink: EventSink, metrics: ServiceMetrics, new_id: RequestIds, clock: Clock) -> None:
    @app.post(
        "/v1/events",
        status_code=202,
        response_model=EventOut,
        responses=_problems(400, 413, 422),
        summary="Send what a user did; answered once the broker has it",
    )
    def events(body: EventRequest) -> dict[str, Any]:
        event = event_of(body, new_id, clock)
        partition, offset = sink.send(event)
        metrics.event()
        return {"event_id": event.event_id, "partition": partition, "offset": offset}


def _add_questions(app: FastAPI, source: BundleSource, answering: Answering, answer: Answer) -> None:
    @app.post(
        "/v1/recommendations",
        response_model=SlateOut,
        response_model_exclude_unset=True,
        responses=_problems(400, 413, 422),
        summary="Recommend for a user, a history, a text, or any of them together",
    )
    async def recommendations(body: RecommendationRequest) -> Response:
        question = Question(
            user_id=body.user_id,
            history=tuple(body.history),
            query=body.query,
            k=body.k,
            exclude_seen=body.exclude_seen,
            explain=body.explain,
            categories=tuple(body.categories),
            allow=tuple(body.allow),
            deny=tuple(body.deny),
            diversity=body.diversity,
            at=answering.asked_at(body.at),
            explore=answering.explored(body.explore),
        )
        return await answer(question)

    # added before all others, so it is asked last
    app.add_middleware(QuickRoute, route=app.routes[-1], endpoint=recommendations)

    @app.get(
        "/v1/users/{user_id:path}/recommendations",
        response_model=SlateOut,
        response_model_exclude_unset=True,
        responses=_problems(404, 422),
        summary="Recommend for a user",
    )
    async def user_recommendations(user_id: UserId, k: KParameter = 10, explain: bool = False) -> Response:
        return await answer(answering.completed(Question(user_id=user_id, k=k, explain=explain)))

    @app.get(
        "/v1/items/{item_id:path}/similar",
        response_model=SimilarOut,
        responses=_problems(404, 422),
        summary="Items whose text is like this one's",
    )
    def similar_items(item_id: ItemId, k: KParameter = 10) -> dict[str, Any]:
        return asdict(similar(source.bundle(), item_id, k))


def _add_state(app: FastAPI, source: BundleSource, clock: Clock, metrics: ServiceMetrics) -> None:
    @app.get("/v1/model", response_model=ModelOut, responses=_problems(), summary="The model that is served")
    def model() -> dict[str, Any]:
        return describe(source.bundle(), clock())

    @app.get("/v1/models", response_model=ModelsOut, responses=_problems(), summary="All model versions")
    def models() -> dict[str, Any]:
        versions, current = source.models()
        return {"versions": list(versions), "current": current}

    @app.get("/healthz", response_model=HealthOut, summary="The process runs")
    async def healthz() -> dict[str, bool]:
        return {"ok": True}

    @app.get("/readyz", response_model=ReadyOut, responses=problem_responses(503), summary="There is a model to serve")
    async def readyz() -> dict[str, Any]:
        return {"ready": True, "model_version": source.bundle().version}

    @app.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses=_problems(),
        summary="Figures for Prometheus",
    )
    def figures() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)


def describe(bundle: Bundle, now: int) -> dict[str, Any]:
    """Return what is served as JSON values; `now` in milliseconds since the epoch."""
    manifest, stream = bundle.model.manifest, bundle.stream
    return {
        "version": manifest.version,
        "parents": list(manifest.parents),
        "round": manifest.details.get("round"),
        "strategy": manifest.details.get("strategy"),
        "encoder": manifest.base_encoder,
        "items": len(bundle.items),
        "created_at": manifest.created_at,
        "age_seconds": max(0, now - manifest.created_at) / 1_000,
        "privacy": None if manifest.privacy is None else asdict(manifest.privacy),
        "metrics": dict(manifest.metrics),
        "stream": None
        if stream is None
        else {
            "version": stream.manifest.version,
            "events": stream.snapshot.events,
            "users": len(stream.snapshot.user_ids),
            "offsets": stream.snapshot.offsets,
            "age_seconds": max(0, now - stream.manifest.created_at) / 1_000,
        },
    }


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI entries of these statuses, and of those that every question can get."""
    return problem_responses(*sorted({*statuses, 401, 403, 429, 503}))


def _describe(app: FastAPI, *, needs_key: bool) -> None:
    """Put the problem schema into the OpenAPI, where the responses refer to it, and how a key is sent."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            parts = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(parts.pop("$defs", {}))
            schemas["Problem"] = parts
            if needs_key:
                schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                for path, methods in schema["paths"].items():
                    for operation in methods.values():
                        operation["security"] = [] if path in OPEN else [{"key": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    # FastAPI's documented way to extend the schema is to replace this method
    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way
