"""A node's answer: checked, charged, trained, in this order, and the same bytes when asked again."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.dp import epsilon_of
from client.ledger import Ledger
from client.node import Node
from common.errors import BudgetExceeded, EncoderError, InvalidSetting
from common.ids import arrays_sha256
from common.instructions import Objective, PrivacyTerms, TrainRequest
from common.privacy import PrivacySpend, PrivacyUnit
from common.updates import AdapterUpdate
from tests.client.federation import Bench, make_data, make_request

OFF = PrivacyTerms("off", math.inf, 1e-3, 0.5)
SHARED = PrivacyTerms("user", 8.0, 1e-3, 0.5, "shared")
ONE_STEP = Objective(window=4, negatives=3)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node("node-1", make_data(), tmp_path / "ledger.sqlite", 7)


def answer(node: Node, bench: Bench, request: TrainRequest, base: dict[str, np.ndarray] | None = None) -> AdapterUpdate:
    return node.answer(request, base or bench.base, bench.encoder, bench.cache)


def entries(node: Node, unit: PrivacyUnit = "user") -> int:
    ledger = Ledger(node.ledger_path, node.client)
    try:
        return ledger.state(PrivacySpend(unit, 1e-3)).entries
    finally:
        ledger.close()


def same(left: AdapterUpdate, right: AdapterUpdate) -> bool:
    return arrays_sha256(left.arrays.items()) == arrays_sha256(right.arrays.items())


def test_an_answer_says_what_it_spent(node: Node, bench: Bench) -> None:
    update = answer(node, bench, make_request(bench))
    assert update.meta.privacy is not None
    ((sigma, rate, steps),) = update.meta.privacy.steps
    assert (rate, steps, update.meta.examples) == (1.0, 2, 4.0)
    expected = epsilon_of(PrivacySpend("user", 1e-3, ((sigma, 1.0, 2),)))
    assert update.meta.epsilon == pytest.approx(expected, abs=1e-9)
    assert update.meta.metrics == {}  # the loss is not noised, so it stays at home


def test_rounds_add_up_and_the_planned_ones_fit_the_budget(node: Node, bench: Bench) -> None:
    spent = [answer(node, bench, make_request(bench, round=number)).meta.epsilon for number in (1, 2)]
    assert spent[0] is not None
    assert spent[1] is not None
    assert spent[0] < spent[1] <= 8.0
    with pytest.raises(BudgetExceeded, match=r"at most 8\.000 \(0\.0\d\d remain\)"):
        answer(node, bench, make_request(bench, round=3))
    assert entries(node) == 2


def test_a_refused_node_does_not_train(node: Node, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def must_not_run(*_: object) -> None:
        pytest.fail("trained without a charge")

    monkeypatch.setattr("client.node.train", must_not_run)
    for wrong, error in (
        (make_request(bench, planned_steps=1), BudgetExceeded),  # noise for one step, and two are asked
        (make_request(bench, encoder_sha256="0" * 64), EncoderError),
        (make_request(bench, privacy=PrivacyTerms("user", 8.0, 0.5, 0.5)), InvalidSetting),
        (make_request(bench, objective=ONE_STEP, privacy=SHARED, noise_multiplier=1.0), InvalidSetting),
    ):
        with pytest.raises(error):
            answer(node, bench, wrong)
        assert entries(node) == 0


def test_the_charge_is_on_disk_before_training(node: Node, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("client.node.train", dies)
    with pytest.raises(KeyboardInterrupt):
        answer(node, bench, make_request(bench))
    assert entries(node) == 1


def test_an_empty_batch_is_charged_like_any_other(node: Node, bench: Bench) -> None:
    never = PrivacyTerms("user", 8.0, 1e-3, 1e-6)
    update = answer(node, bench, make_request(bench, privacy=never))
    assert update.meta.privacy is not None
    assert [count for _, _, count in update.meta.privacy.steps] == [2]
    assert entries(node) == 1
    assert all(array.all() for array in update.arrays.values())  # noise everywhere


def test_asked_again_it_gives_the_same_bytes_for_one_charge(node: Node, bench: Bench) -> None:
    first, second = (answer(node, bench, make_request(bench)) for _ in range(2))
    assert same(first, second)
    assert entries(node) == 1
    assert first.meta.epsilon == second.meta.epsilon


def test_without_a_given_secret_the_ledgers_own_gives_the_same_bytes_again(bench: Bench, tmp_path: Path) -> None:
    real = Node("node-1", make_data(), tmp_path / "real.sqlite", None)
    assert same(answer(real, bench, make_request(bench)), answer(real, bench, make_request(bench)))
    assert entries(real) == 1
    other = Node("node-1", make_data(), tmp_path / "other.sqlite", None)
    assert not same(answer(real, bench, make_request(bench)), answer(other, bench, make_request(bench)))


def noise_cancels(left: AdapterUpdate, right: AdapterUpdate) -> bool:
    """Tell whether two releases carry the same noise: then their difference is far smaller than they are."""
    flat = [np.concatenate([a.ravel() for a in each.arrays.values()]) for each in (left, right)]
    return float(np.linalg.norm(flat[0] - flat[1])) < 0.5 * float(np.linalg.norm(flat[0]))


@pytest.mark.parametrize("what", ["base", "clip", "rate", "negatives", "round", "run", "data"])
def test_whatever_is_changed_the_noise_is_new_and_charged(node: Node, bench: Bench, what: str) -> None:
    """A server that could have the same noise twice would subtract it."""
    strict = PrivacyTerms("user", 0.5, 1e-3, 1.0)
    request = make_request(bench, privacy=strict, planned_steps=100)
    base = {name: array + np.float32(1e-3) for name, array in bench.base.items()}
    goal = request.objective
    changed: dict[str, tuple[Node, TrainRequest, dict[str, np.ndarray]]] = {
        "base": (node, request, base),
        "clip": (node, replace(request, objective=replace(goal, clip=goal.clip * 1.0001)), bench.base),
        "rate": (node, replace(request, objective=replace(goal, learning_rate=1.0001)), bench.base),
        "negatives": (node, replace(request, objective=replace(goal, negatives=4)), bench.base),
        "round": (node, replace(request, round=2), bench.base),
        "run": (node, replace(request, run="other"), bench.base),
        "data": (replace(node, data=make_data(seed=1)), request, bench.base),
    }
    first = answer(node, bench, request)
    other_node, other_request, other_base = changed[what]
    second = answer(other_node, bench, other_request, other_base)
    assert not noise_cancels(first, second)
    assert entries(node) == 2


def test_the_check_finds_noise_that_cancels(node: Node, bench: Bench) -> None:
    update = answer(node, bench, make_request(bench))
    assert noise_cancels(update, update.scale(1.1))


def test_nodes_do_not_share_their_noise(bench: Bench, tmp_path: Path) -> None:
    updates = [
        answer(Node(f"n{secret}", make_data(), tmp_path / f"{secret}.sqlite", secret), bench, make_request(bench))
        for secret in (1, 2)
    ]
    assert not noise_cancels(*updates)


def test_without_a_guarantee_nothing_is_charged_and_the_loss_is_told(node: Node, bench: Bench) -> None:
    update = answer(node, bench, make_request(bench, privacy=OFF))
    assert (update.meta.privacy, update.meta.epsilon) == (None, None)
    assert update.meta.metrics["loss"] > 0
    assert not node.ledger_path.exists()


def test_the_example_unit_counts_windows(node: Node, bench: Bench) -> None:
    request = make_request(bench, privacy=PrivacyTerms("example", 8.0, 1e-3, 1.0), objective=Objective(4, 3))
    update = answer(node, bench, request)
    assert update.meta.examples == 4 * 2  # nine clicks: windows of 4, 4 and 1, and the last is none
    assert update.meta.privacy is not None
    assert update.meta.privacy.unit == "example"


def test_a_delta_of_one_over_the_records_is_refused(node: Node, bench: Bench) -> None:
    with pytest.raises(InvalidSetting, match=r"delta 0\.25 on a node of 4 records"):
        answer(node, bench, make_request(bench, privacy=PrivacyTerms("user", 8.0, 0.25, 0.5)))


def test_a_request_survives_the_flat_form(bench: Bench) -> None:
    request = make_request(bench)
    assert TrainRequest.from_flat(request.flat()) == request
    flat = request.flat()
    del flat["round"]
    with pytest.raises(InvalidSetting, match="`round`"):
        TrainRequest.from_flat(flat)
    with pytest.raises(InvalidSetting, match=r"objective.*window"):
        TrainRequest.from_flat({**request.flat(), "objective.window": "wide"})
    with pytest.raises(InvalidSetting, match="window=1; expected window >= 2"):
        TrainRequest.from_flat({**request.flat(), "objective.window": 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("window", 1),
        ("negatives", 0),
        ("local_steps", 0),
        ("clip", 0.0),
        ("clip", math.nan),
        ("temperature", -1.0),
        ("learning_rate", math.inf),
    ],
)
def test_an_impossible_objective_is_refused(name: str, value: float) -> None:
    with pytest.raises(InvalidSetting, match=name):
        Objective(**{name: value})  # type: ignore[arg-type]  # by name
