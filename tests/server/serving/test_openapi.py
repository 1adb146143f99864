"""The whole API, fuzzed from its own OpenAPI: no 5xx, nothing that the schema does not say."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

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


@pytest.mark.parametrize(("method", "path", "mode"), CASES)
def test_the_api_keeps_to_its_schema(service: str, method: str, path: str, mode: GenerationMode) -> None:
    config = schemathesis.Config.from_dict(CONFIG)
    operation = schemathesis.openapi.from_url(f"{service}/openapi.json", config=config)[path][method]

    @settings(
        max_examples=40,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        case = data.draw(operation.as_strategy(generation_mode=mode))
        case.call_and_validate(timeout=30.0)

    check()
