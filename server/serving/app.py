"""The HTTP edge: it checks, asks the pure functions, and says what went wrong; nothing else."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query
from fastapi.openapi.utils import get_openapi

from common.clock import Clock, wall_clock
from common.events import MAX_ID_LENGTH
from server.serving import problems
from server.serving.bundle import Bundle, BundleSource
from server.serving.problems import Problem, problem_responses
from server.serving.query import QueryTexts
from server.serving.recommend import MAX_K, Question, RequestIds, random_request_id, recommend, similar, slate_payload
from server.serving.schemas import (
    HealthOut,
    ModelOut,
    ModelsOut,
    ReadyOut,
    RecommendationRequest,
    SimilarOut,
    SlateOut,
)

UserId = Annotated[str, Path(min_length=1, max_length=MAX_ID_LENGTH, examples=["196"])]
ItemId = Annotated[str, Path(min_length=1, max_length=MAX_ID_LENGTH, examples=["50"])]
KParameter = Annotated[int, Query(ge=1, le=MAX_K, description="How many items")]


def answer(source: BundleSource, queries: QueryTexts, question: Question, new_id: RequestIds) -> dict[str, Any]:
    """Answer one question from one bundle, taken once: query, items and version belong together."""
    bundle = source.bundle()
    vector = None if question.query is None else queries.vector(bundle.model, question.query)
    return slate_payload(recommend(bundle, question, vector, new_id()), explain=question.explain)


def create_app(
    source: BundleSource,
    queries: QueryTexts,
    *,
    clock: Clock = wall_clock,
    new_id: RequestIds = random_request_id,
) -> FastAPI:
    """Build the service.

    Parameters
    ----------
    source
        Gives the bundle that each request is answered from.
    queries
        Encodes query texts.
    clock
        For ages.
    new_id
        Gives request ids.
    """
    app = FastAPI(
        title="Anabranch",
        version="1",
        description="What next for this user, this text, this history.",
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
    )
    problems.install(app)
    _add_questions(app, source, queries, new_id)
    _add_state(app, source, clock)
    _describe_problems(app)
    return app


def _add_questions(app: FastAPI, source: BundleSource, queries: QueryTexts, new_id: RequestIds) -> None:
    @app.post(
        "/v1/recommendations",
        response_model=SlateOut,
        response_model_exclude_unset=True,
        responses=problem_responses(400, 413, 422, 503),
        summary="Recommend for a user, a history, a text, or any of them together",
    )
    def recommendations(body: RecommendationRequest) -> dict[str, Any]:
        question = Question(
            user_id=body.user_id,
            history=tuple(body.history),
            query=body.query,
            k=body.k,
            exclude_seen=body.exclude_seen,
            explain=body.explain,
        )
        return answer(source, queries, question, new_id)

    @app.get(
        "/v1/users/{user_id:path}/recommendations",
        response_model=SlateOut,
        response_model_exclude_unset=True,
        responses=problem_responses(404, 422, 503),
        summary="Recommend for a user",
    )
    def user_recommendations(user_id: UserId, k: KParameter = 10, explain: bool = False) -> dict[str, Any]:
        return answer(source, queries, Question(user_id=user_id, k=k, explain=explain), new_id)

    @app.get(
        "/v1/items/{item_id:path}/similar",
        response_model=SimilarOut,
        responses=problem_responses(404, 422, 503),
        summary="Items whose text is like this one's",
    )
    def similar_items(item_id: ItemId, k: KParameter = 10) -> dict[str, Any]:
        return asdict(similar(source.bundle(), item_id, k))


def _add_state(app: FastAPI, source: BundleSource, clock: Clock) -> None:
    @app.get("/v1/model", response_model=ModelOut, responses=problem_responses(503), summary="The model that is served")
    def model() -> dict[str, Any]:
        return describe(source.bundle(), clock())

    @app.get("/v1/models", response_model=ModelsOut, responses=problem_responses(503), summary="All model versions")
    def models() -> dict[str, Any]:
        versions, current = source.models()
        return {"versions": list(versions), "current": current}

    @app.get("/healthz", response_model=HealthOut, summary="The process runs")
    async def healthz() -> dict[str, bool]:
        return {"ok": True}

    @app.get("/readyz", response_model=ReadyOut, responses=problem_responses(503), summary="There is a model to serve")
    async def readyz() -> dict[str, Any]:
        return {"ready": True, "model_version": source.bundle().version}


def describe(bundle: Bundle, now: int) -> dict[str, Any]:
    """Return what is served as JSON values; `now` in milliseconds since the epoch."""
    manifest, stream = bundle.model.manifest, bundle.stream
    return {
        "version": manifest.version,
        "parents": list(manifest.parents),
        "round": manifest.details.get("round"),
        "strategy": manifest.details.get("strategy"),
        "encoder": manifest.base_encoder,
        "items": len(bundle.catalogue),
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


def _describe_problems(app: FastAPI) -> None:
    """Put the problem schema into the OpenAPI, where the responses refer to it."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            parts = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(parts.pop("$defs", {}))
            schemas["Problem"] = parts
            app.openapi_schema = schema
        return app.openapi_schema

    # FastAPI's documented way to extend the schema is to replace this method
    app.openapi = openapi  # type: ignore[method-assign]
