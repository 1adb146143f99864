"""Updates in 8 bits: what was asked for counts, and everything else is quarantined with its reason."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.node import SecretSum
from common.errors import InvalidSetting
from common.instructions import PrivacyTerms, TrainRequest
from common.quantise import STEP, dequantise, quantise
from common.updates import AdapterUpdate
from server.fleet.base import Reply
from server.rounds import RunPlan
from server.traffic import traffic_of
from tests.server.memory_fleet import Behaviour, MemoryFleet, honest
from tests.server.test_asynchronous import async_plan
from tests.server.test_asynchronous import run as run_async
from tests.server.test_rounds import OFF, fingerprint, plan_of, run

NAME = "x.lora_B.weight"


def coded(
    node: int, request: TrainRequest, adapter: Mapping[str, np.ndarray], hidden_in: SecretSum | None = None
) -> AdapterUpdate:
    update = honest(node, request, adapter, hidden_in)
    return replace(update, arrays=quantise(update.arrays, node, request.round))


def numbers(
    node: int, request: TrainRequest, adapter: Mapping[str, np.ndarray], hidden_in: SecretSum | None = None
) -> AdapterUpdate:
    update = coded(node, request, adapter, hidden_in)
    return replace(update, arrays=dequantise(update.arrays))


def spoiled(**arrays: Callable[[np.ndarray], np.ndarray]) -> Behaviour:
    """Return a node that changes what it sends: its codes, or its step width."""

    def spoil(reply: Reply) -> list[Reply]:
        assert isinstance(reply.outcome, AdapterUpdate)
        names = {"codes": NAME, "step": NAME + STEP}
        changed = {names[key]: make(reply.outcome.arrays[names[key]]) for key, make in arrays.items()}
        return [replace(reply, outcome=replace(reply.outcome, arrays={**reply.outcome.arrays, **changed}))]

    return spoil


def test_codes_count_as_the_numbers_that_they_stand_for(tmp_path: Path) -> None:
    narrow = run(tmp_path / "8 bits", plan_of(uplink="int8"), MemoryFleet(4, update=coded))
    wide = run(tmp_path / "32 bits", plan_of(), MemoryFleet(4, update=numbers))
    assert fingerprint(narrow) == fingerprint(wide)


def test_without_rounds_codes_count_as_their_numbers_too(tmp_path: Path) -> None:
    narrow, wide = (async_plan(uplink=uplink, strategy="fedsvd") for uplink in ("int8", "float32"))
    found = run_async(tmp_path / "8 bits", narrow, MemoryFleet(5, update=coded))
    expected = run_async(tmp_path / "32 bits", wide, MemoryFleet(5, update=numbers))
    assert fingerprint(found) == fingerprint(expected)


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (spoiled(step=lambda step: np.asarray(np.nan, dtype=np.float32)), "step width nan of tensor"),
        (spoiled(step=lambda step: -step), "expected a finite number above 0"),
        (spoiled(step=lambda step: step.astype(np.float64)), "step width of tensor 'x.lora_B.weight' is float64"),
        (spoiled(step=lambda step: np.asarray(np.float32(3e38))), "has NaN or infinite elements"),
        (spoiled(step=lambda step: np.asarray(np.float32(1e6))), "update of norm"),
        (spoiled(codes=lambda codes: codes[:-1]), "is float32 (4, 2); expected float32 (5, 2)"),
        (spoiled(codes=lambda codes: codes.astype(np.int16)), "codes of tensor 'x.lora_B.weight' are int16"),
        (spoiled(codes=lambda codes: np.full_like(codes, -128)), "code -128"),
    ],
)
def test_a_spoiled_reply_is_quarantined_with_its_reason(tmp_path: Path, behaviour: Behaviour, reason: str) -> None:
    plan = plan_of(uplink="int8", cohort=4, rounds=1)
    state = run(tmp_path, plan, MemoryFleet(4, update=coded, bad={(1, 2): behaviour}))
    (refused,) = state.history[0].quarantined
    assert refused.client == "client-2"
    assert reason in refused.reason
    assert state.history[0].replied == 3


@pytest.mark.parametrize(
    ("uplink", "update", "reason"),
    [("int8", honest, "codes or a step width alone"), ("float32", coded, "in only one of update and request")],
)
def test_a_reply_in_other_bits_than_asked_for_is_quarantined(
    tmp_path: Path, uplink: str, update: Callable[..., AdapterUpdate], reason: str
) -> None:
    other = coded if update is honest else honest

    def one_of_them(node: int, *asked: object) -> AdapterUpdate:
        return update(node, *asked) if node == 2 else other(node, *asked)  # type: ignore[arg-type]  # handed on

    state = run(tmp_path, plan_of(uplink=uplink, cohort=4, rounds=1), MemoryFleet(4, update=one_of_them))
    assert [reason in each.reason for each in state.history[0].quarantined] == [True]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"privacy": PrivacyTerms("user", 8.0, 1e-4, 0.2, "server")}, "breaks the bound before another's"),
        ({"privacy": PrivacyTerms("client", 8.0, 1e-4, 0.2, "server")}, "breaks the bound before another's"),
        ({"privacy": OFF, "secure_aggregation": True, "min_replies": 3}, "rounds to a grid of its own"),
        (
            {"secure_aggregation": True, "min_replies": 3, "privacy": PrivacyTerms("user", 8.0, 1e-4, 0.2, "shared")},
            "breaks the bound before another's",
        ),
    ],
)
def test_rounding_before_the_noise_is_refused_with_the_reason(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        plan_of(uplink="int8", **changes)
    assert reason in str(caught.value)


@pytest.mark.parametrize("unit", ["user", "example", "client", "off"])
def test_rounding_after_a_nodes_own_noise_is_allowed(unit: str) -> None:
    plan: RunPlan = plan_of(uplink="int8", privacy=PrivacyTerms(unit, 8.0, 1e-4, 0.2))  # type: ignore[arg-type]  # by name
    assert plan.request(1, "base", (NAME,), 5).uplink == "int8"


def test_a_request_in_the_usual_bits_keeps_the_name_that_it_had() -> None:
    usual = plan_of().request(1, "base", (NAME,), 5)
    assert "uplink" not in usual.flat()
    assert TrainRequest.from_flat(usual.flat()) == usual
    narrow = plan_of(uplink="int8").request(1, "base", (NAME,), 5)
    assert TrainRequest.from_flat(narrow.flat()) == narrow
    with pytest.raises(InvalidSetting, match="a train request with"):
        TrainRequest.from_flat({**usual.flat(), "uplink": "int4"})


def test_what_travelled_is_told_by_round_and_client(tmp_path: Path) -> None:
    class Counted(MemoryFleet):
        def train(self, *args: object, **named: object):  # type: ignore[no-untyped-def]  # handed on
            for reply in super().train(*args, **named):  # type: ignore[arg-type]  # handed on
                yield replace(reply, received_bytes=100, sent_bytes=250)

    state = run(tmp_path, plan_of(rounds=2), Counted(4))
    one = {"up": 300, "down": 750, "up_per_client": 100, "down_per_client": 250}
    assert traffic_of(state.history, "float32") == {
        "uplink": "float32",
        "up": 600,
        "down": 1500,
        "rounds": [{"round": 1, **one}, {"round": 2, **one}],
    }
