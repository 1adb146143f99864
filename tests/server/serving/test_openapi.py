"""The whole API, fuzzed from its own OpenAPI: no 5xx but 503 for what is not there, nothing that the schema lacks.

A few examples each in the fast suite, many with the marker `slow`.
"""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from schemathesis import GenerationMode

from server.serving.app import create_app
from server.serving.bundle import load_bundle
from server.serving.keys import KeyFile
from server.serving.query import QueryTexts
from server.serving.reload import FixedSource, ReloadingSource
from server.serving.run import serve_in_thread
from stream.writer import EventWriter
from tests.memory_log import MemoryLog
from tests.server.serving.conftest import board_store
from tests.server.serving.stores import WordEncoder

FITS, MISFITS = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
CASES = (
    ("POST", "/v1/recommendations", FITS),
    ("POST", "/v1/recommendations", MISFITS),
    ("GET", "/v1/users/{user_id}/recommendations", FITS),
    ("GET", "/v1/users/{user_id}/recommendations", MISFITS),
    ("GET", "/v1/items/{item_id}/similar", FITS),
    ("GET", "/v1/items/{item_id}/similar", MISFITS),
    # nothing can be wrong with a question that has no parts
    ("GET", "/v1/model", FITS),
    ("GET", "/v1/models", FITS),
    ("POST", "/v1/events", FITS),
    ("POST", "/v1/events", MISFITS),
    ("GET", "/metrics", FITS),
    ("GET", "/healthz", FITS),
    ("GET", "/readyz", FITS),
)
# a text may fit the schema and, escaped, still be longer than a body may be: 413 is a refusal like the others
REFUSALS = ["400", "404", "405", "413", "415", "422"]
CONFIG = {
    "checks": {
        "negative_data_rejection": {"expected-statuses": REFUSALS},
        "positive_data_acceptance": {"expected-statuses": ["2xx", "404", "413"]},
    }
}


CONFIG_EMPTY = {
    "checks": {
        "negative_data_rejection": {"expected-statuses": [*REFUSALS, "503"]},
        "positive_data_acceptance": {"expected-statuses": ["2xx", "404", "413", "503"]},
        "not_a_server_error": {"expected-statuses": ["2xx", "4xx", "503"]},
    }
}
FEW, MANY = 8, 150
# Hypothesis looks at the state of `random` before and after a draw; the threads of the service and of Kafka's client
# draw from it in between, which is no fault of a strategy
pytestmark = pytest.mark.filterwarnings(
    "ignore:Do not use the .random. module inside strategies:hypothesis.errors.HypothesisDeprecationWarning"
)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve a board store that takes events; gives the URL."""
    registry = board_store(tmp_path_factory.mktemp("fuzzed") / "store")
    app = create_app(
        FixedSource(registry, load_bundle(registry)),
        QueryTexts(lambda name: WordEncoder()),
        events=EventWriter(MemoryLog(), "clicks"),
    )
    with serve_in_thread(app) as running:
        yield running.url


def fuzz(service: str, method: str, path: str, mode: GenerationMode, examples: int, *, ready: bool = True) -> None:
    config = schemathesis.Config.from_dict(CONFIG if ready else CONFIG_EMPTY)
    operation = schemathesis.openapi.from_url(f"{service}/openapi.json", config=config)[path][method]

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        case = data.draw(operation.as_strategy(generation_mode=mode))
        response = case.call_and_validate(timeout=30.0)
        assert response.status_code < 500 or (not ready and response.status_code == 503)

    check()


@pytest.mark.parametrize(("method", "path", "mode"), CASES)
def test_the_api_keeps_to_its_schema(fuzzed: str, method: str, path: str, mode: GenerationMode) -> None:
    fuzz(fuzzed, method, path, mode, FEW)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path", "mode"), CASES)
def test_the_api_keeps_to_its_schema_for_many(fuzzed: str, method: str, path: str, mode: GenerationMode) -> None:
    fuzz(fuzzed, method, path, mode, MANY)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path", "mode"), CASES)
def test_before_the_first_model_503_is_all_that_is_added(
    tmp_path: Path, method: str, path: str, mode: GenerationMode
) -> None:
    app = create_app(ReloadingSource(tmp_path / "nothing"), QueryTexts(lambda name: WordEncoder()))
    with serve_in_thread(app) as running:
        fuzz(running.url, method, path, mode, 30, ready=False)


def test_the_cases_are_all_operations(fuzzed: str) -> None:
    paths = httpx.get(f"{fuzzed}/openapi.json").json()["paths"]
    assert {(method.upper(), path) for path, methods in paths.items() for method in methods} == {
        (method, path) for method, path, _ in CASES
    }


def test_every_body_has_examples_that_are_taken(fuzzed: str) -> None:
    schema = httpx.get(f"{fuzzed}/openapi.json").json()
    taken = 0
    for path, methods in schema["paths"].items():
        if "post" not in methods:
            continue
        body = methods["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        for example in schema["components"]["schemas"][body]["examples"]:
            assert httpx.post(f"{fuzzed}{path}", json=example, timeout=60.0).is_success, example
            taken += 1
    assert taken >= 5


def test_figures_tell_what_was_asked(fuzzed: str) -> None:
    httpx.get(f"{fuzzed}/v1/users/u0/recommendations")
    httpx.get(f"{fuzzed}/v1/users/u0-who-is-secret/recommendations")
    httpx.get(f"{fuzzed}/nowhere/secret")
    httpx.request("PROPFIND", f"{fuzzed}/v1/model")
    answer = httpx.get(f"{fuzzed}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = {
        sample.name + "|" + "|".join(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    route = "/v1/users/{user_id:path}/recommendations"
    assert values[f"anabranch_serve_requests_total|GET|{route}|200"] >= 2
    assert values["anabranch_serve_requests_total|GET|none|404"] >= 1
    assert values["anabranch_serve_requests_total|other|/v1/model|405"] >= 1
    assert values[f"anabranch_serve_seconds_count|{route}"] >= 2
    assert values["anabranch_serve_slates_total|true"] >= 1
    assert values["anabranch_serve_ready|"] == 1.0
    assert values["anabranch_serve_model_age_seconds|"] > 0
    assert values["anabranch_serve_live_lag_records|"] == -1.0
    assert "secret" not in answer.text


def test_the_openapi_says_how_a_key_is_sent(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    _, secret = keys.new("reader", ["read"])
    app = create_app(ReloadingSource(tmp_path / "nothing"), QueryTexts(lambda name: WordEncoder()), keys=keys)
    with serve_in_thread(app) as running:
        schema = httpx.get(f"{running.url}/openapi.json", headers={"Authorization": f"Bearer {secret}"}).json()
    assert schema["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    assert schema["paths"]["/v1/model"]["get"]["security"] == [{"key": []}]
    assert schema["paths"]["/healthz"]["get"]["security"] == []
