"""What goes over HTTP, as OpenAPI shows it; the values behind are in `server.serving.recommend`."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from common.events import MAX_ID_LENGTH
from server.serving.recommend import MAX_HISTORY, MAX_K, MAX_QUERY

Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH)]


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
    propensity: float = Field(description="Probability that the policy shows it here; 1 for the deterministic top k")
    title: str
    reasons: list[ReasonOut] | None = None


class SlateOut(BaseModel):
    """The answer; clicks that follow carry its `request_id`."""

    request_id: str
    model_version: str
    known_user: bool
    items: list[RecommendationOut]
    ignored: dict[str, int] = Field(examples=[{"unknown_items": 0}])


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
