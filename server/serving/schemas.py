"""What goes over HTTP, as OpenAPI shows it; the values behind are in `server.serving.recommend`."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from common.events import MAX_ID_LENGTH, MAX_TS, Action
from server.serving.recommend import MAX_FILTER, MAX_HISTORY, MAX_K, MAX_QUERY

Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH)]


Category = Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH)]


def _integral(value: object) -> object:
    """Let 10.0 be 10: JSON has one kind of number, and OpenAPI's integer includes it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


K = Annotated[int, Field(ge=1, le=MAX_K, description="How many items"), BeforeValidator(_integral)]


class RecommendationRequest(BaseModel):
    """A question; without user, history and query it is answered with what is popular."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {"user_id": "196", "k": 5},
                {"history": ["50", "181"], "query": "space adventure", "k": 5, "explain": True},
                {"user_id": "196", "categories": ["Comedy"], "deny": ["50"], "diversity": 0.3},
            ]
        },
    )

    user_id: Id | None = Field(default=None, description="Whose history and seen items are used")
    history: Annotated[list[Id], Field(max_length=MAX_HISTORY)] = Field(
        default_factory=list, description="Item ids liked beyond what is known of the user, oldest first"
    )
    query: Annotated[str, Field(max_length=MAX_QUERY, pattern=r"\S")] | None = Field(
        default=None, description="Text to be close to"
    )
    k: K = 10
    exclude_seen: bool = Field(default=True, description="Leave out what the user liked and what `history` names")
    explain: bool = Field(default=False, description="Give reasons whose weights add up to the score")
    categories: Annotated[list[Category], Field(max_length=MAX_FILTER)] = Field(
        default_factory=list, description="Only items that have one of these; none takes all"
    )
    allow: Annotated[list[Id], Field(max_length=MAX_FILTER)] = Field(
        default_factory=list, description="Only these items; none takes all"
    )
    deny: Annotated[list[Id], Field(max_length=MAX_FILTER)] = Field(
        default_factory=list, description="None of these items, whatever else is said"
    )
    diversity: float = Field(
        default=0.0, ge=0.0, le=1.0, description="How much less alike the items are to be, by their texts"
    )
    at: Annotated[int, Field(ge=0, lt=MAX_TS), BeforeValidator(_integral)] | None = Field(
        default=None, description="When it is asked, in milliseconds since the epoch; now, where it is not given"
    )
    explore: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(
        default=None,
        description="How often a slot is given to any item in question; as the service is set, where it is not given",
    )


class ReasonOut(BaseModel):
    """One part of a score."""

    kind: str = Field(examples=["because-you-liked"])
    text: str = Field(examples=["Star Wars (1977)"])
    weight: float
    members: dict[str, float] = Field(
        description="Through which members it comes; they add up to the weight", examples=[{"neighbours": 0.5}]
    )


class RecommendationOut(BaseModel):
    """One recommended item."""

    item_id: str
    rank: int
    score: float = Field(description="Comparable within one slate only")
    propensity: float = Field(
        description="Probability that the policy shows it here, given those above; 1 for the deterministic top k"
    )
    title: str
    reasons: list[ReasonOut] | None = None


class SlateOut(BaseModel):
    """The answer; clicks that follow carry its `request_id`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "request_id": "6f1d3c1e0f6b4c0c8a2f5b7f9d0e1a2b",
                    "model_version": "v000012",
                    "known_user": True,
                    "items": [
                        {
                            "item_id": "258",
                            "rank": 1,
                            "score": 12.96,
                            "propensity": 1.0,
                            "title": "Contact (1997)",
                        }
                    ],
                    "ignored": {"unknown_items": 0},
                    "answered_from": ["neighbours", "factors", "text", "popularity"],
                    "policy": "deterministic",
                }
            ]
        }
    )

    request_id: str
    model_version: str
    known_user: bool = Field(description="Whether the click learner knows the user, clicks of this minute included")
    items: list[RecommendationOut]
    ignored: dict[str, int] = Field(
        description="How many of the given names mean nothing here", examples=[{"unknown_items": 0}]
    )
    answered_from: list[str] = Field(description="The opinions that the scores are made of", examples=[["popularity"]])
    policy: str = Field(
        description="How the items were chosen: deterministic or epsilon-greedy", examples=["deterministic"]
    )


class SimilarItemOut(BaseModel):
    """One item like another."""

    item_id: str
    rank: int
    score: float = Field(description="Cosine of the text vectors")
    title: str


class SimilarOut(BaseModel):
    """Items whose text is like one item's."""

    item_id: str
    model_version: str
    items: list[SimilarItemOut]


class PrivacyOut(BaseModel):
    """The guarantee that the version carries, over everything that went into it."""

    unit: str
    epsilon: float | None
    delta: float | None
    budget: float | None
    accountant: str


class StreamOut(BaseModel):
    """The snapshot of the click learner that is served."""

    version: str
    events: int
    users: int
    offsets: dict[str, dict[str, int]] = Field(description="Topic to partition to the next offset")
    age_seconds: float


class ModelOut(BaseModel):
    """The model that is served."""

    version: str
    parents: list[str]
    round: int | None
    strategy: str | None
    encoder: str
    items: int
    created_at: int = Field(description="Milliseconds since the epoch")
    age_seconds: float
    privacy: PrivacyOut | None
    metrics: dict[str, Any]
    stream: StreamOut | None = Field(description="null before the first snapshot")


class ModelsOut(BaseModel):
    """All versions, oldest first."""

    versions: list[str]
    current: str | None


class ReadyOut(BaseModel):
    """Ready to answer."""

    ready: bool
    model_version: str


class HealthOut(BaseModel):
    """The process runs."""

    ok: bool


class EventRequest(BaseModel):
    """What one user did with one item."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {"user_id": "196", "item_id": "50", "action": "click"},
                {"event_id": "web-7-42", "user_id": "196", "item_id": "258", "action": "rating", "value": 4.0},
            ]
        },
    )

    user_id: Id
    item_id: Id
    action: Action
    event_id: Id | None = Field(
        default=None, description="A second event with the same id is a duplicate; give it to send again safely"
    )
    value: float = Field(
        default=1.0, ge=-1e12, le=1e12, allow_inf_nan=False, description="Stars of a rating, quantity of a purchase"
    )
    ts: Annotated[int, Field(ge=0, lt=MAX_TS), BeforeValidator(_integral)] | None = Field(
        default=None, description="Milliseconds since the epoch; now, where it is not given"
    )
    request_id: Id | None = Field(default=None, description="The slate that led to it")
    context: dict[str, str | bool | int | float | None] = Field(
        default_factory=dict, max_length=50, description="A flat object of your own"
    )


class EventOut(BaseModel):
    """The broker has the event, on as many replicas as it asks for."""

    event_id: str
    partition: int
    offset: int
