"""A node's own policy: no unless it says yes."""

from dataclasses import replace

import pytest

from client.policy import NodePolicy
from common.errors import InvalidSetting, PrivacyError
from common.instructions import Objective, PrivacyTerms, TrainRequest

REQUEST = TrainRequest(
    run="run",
    round=1,
    base_version="v0",
    strategy="fedsvd",
    trained=("b",),
    encoder_sha256="0" * 64,
    planned_steps=3,
    objective=Objective(),
    privacy=PrivacyTerms(),
)


def asking(**terms: object) -> TrainRequest:
    sigma = 1.0 if terms.get("noise") == "server" else 0.0
    return replace(REQUEST, noise_multiplier=sigma, privacy=replace(REQUEST.privacy, **terms))  # type: ignore[arg-type]  # as a server might


def test_the_usual_request_is_accepted() -> None:
    NodePolicy.from_config({}).check(REQUEST)


@pytest.mark.parametrize(
    ("terms", "named"),
    [
        ({"unit": "off"}, "privacy unit 'off'"),
        ({"noise": "server"}, "noise added by 'server'"),
        ({"epsilon": 8.01}, "epsilon 8.01"),
        ({"epsilon": float("inf")}, "epsilon inf"),
        ({"unit": "nothing"}, "privacy unit 'nothing'"),
    ],
)
def test_weaker_terms_are_refused_by_name(terms: dict[str, object], named: str) -> None:
    with pytest.raises(PrivacyError, match=named):
        NodePolicy.from_config({}).check(asking(**terms))


@pytest.mark.parametrize(
    ("config", "terms"),
    [
        ({"units": "off"}, {"unit": "off"}),
        ({"noise": "local, server"}, {"noise": "server"}),
        ({"max-epsilon": "10"}, {"epsilon": 10.0}),
    ],
)
def test_the_owner_may_agree_to_more(config: dict[str, str], terms: dict[str, object]) -> None:
    NodePolicy.from_config(config).check(asking(**terms))


def test_the_owner_may_agree_to_less() -> None:
    with pytest.raises(PrivacyError, match="at most 1"):
        NodePolicy.from_config({"max-epsilon": "1"}).check(REQUEST)


@pytest.mark.parametrize("text", ["", "many", "0", "-1", "nan"])
def test_a_policy_that_cannot_be_read_accepts_nothing(text: str) -> None:
    with pytest.raises(InvalidSetting, match="max-epsilon"):
        NodePolicy.from_config({"max-epsilon": text})
