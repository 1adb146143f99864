"""Our strategies inside Flower's own loop: the documented app, and replies that no round may die of."""

import importlib
import logging
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import ServerApp
from flwr.supercore.task_identity import TaskIdentity

from common.ids import rng_for
from common.updates import AdapterUpdate, UpdateMeta
from server.aggregate import STRATEGIES, aggregate_arrays, strategy_named
from server.aggregate.base import PlainStep, RowAdam
from server.fleet.inprocess import InProcessGrid
from server.flower_strategy import FlowerStrategy, mean_metrics
from tests.contracts.test_strategies import SHAPES, start

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "strategies.md"
NODES = (2, 3, 4, 5)


# -- the documented app ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerApp]:
    """Give the ServerApp of the document, in a module that workers can import too."""
    (source,) = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    folder = tmp_path_factory.mktemp("example")
    (folder / "documented_app.py").write_text(source, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        app = importlib.import_module("documented_app").server_app
        assert isinstance(app, ServerApp)
        yield app


@pytest.fixture(scope="module")
def grid(example: ServerApp) -> Iterator[InProcessGrid]:
    configs = [{"partition-id": str(number)} for number in range(6)]
    with InProcessGrid("documented_app:client_app", configs, workers=2) as made:
        yield made


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_the_documented_app_learns_with_every_strategy(example: ServerApp, grid: InProcessGrid, name: str) -> None:
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={"strategy": name})
    example(grid, context)
    losses = context.state.metric_records["losses"]["by-round"]
    assert isinstance(losses, list)
    assert len(losses) == 6
    assert losses[-1] < 0.6 * losses[0]
    adapter = context.state.array_records["adapter"]
    assert {key: array.numpy().shape for key, array in adapter.items()} == {
        "dense.lora_A.weight": (4, 6),
        "dense.lora_B.weight": (5, 4),
    }


# -- replies ---------------------------------------------------------------------------------------------------------


class Nodes(InProcessGrid):
    """A grid without workers: only its list of nodes is asked for."""

    def __init__(self) -> None:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1

    def get_node_ids(self) -> list[int]:
        return list(NODES)


def record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord(OrderedDict((name, Array(array)) for name, array in arrays.items()))


def asked(flower: FlowerStrategy, base: Mapping[str, np.ndarray]) -> dict[int, Message]:
    messages = flower.configure_train(1, record(base), ConfigRecord({"lr": 0.1}), Nodes())
    return {message.metadata.dst_node_id: message for message in messages}


def answer(message: Message, arrays: Mapping[str, np.ndarray], **metrics: float) -> Message:
    content = RecordDict({"arrays": record(arrays), "metrics": MetricRecord({"num-examples": 7, **metrics})})
    return Message(content, reply_to=message)


def honest(message: Message) -> dict[str, np.ndarray]:
    """Return the tensors that a client would send back."""
    rng = rng_for("client", message.metadata.dst_node_id)
    base = {name: array.numpy() for name, array in message.content.array_records["arrays"].items()}
    trained = message.content.config_records["config"]["trained"]
    assert isinstance(trained, list)
    return {
        str(name): (base[str(name)] + 0.1 * rng.standard_normal(base[str(name)].shape)).astype(np.float32)
        for name in trained
    }


def values(given: ArrayRecord | None) -> dict[str, np.ndarray]:
    assert given is not None
    return {name: array.numpy() for name, array in given.items()}


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_two_rounds_are_what_the_strategy_gives_by_itself(name: str) -> None:
    flower = FlowerStrategy(strategy_named(name, RowAdam()))
    alone = strategy_named(name, RowAdam())
    base, state = start(), dict[str, np.ndarray]()
    for number in (1, 2):
        messages = asked(flower, base)
        sent = {node: honest(message) for node, message in messages.items()}
        updates = [
            AdapterUpdate(
                UpdateMeta(str(node), "", name, number, 1.0),
                {each: sent[node][each] - base[each] for each in sent[node]},
            )
            for node in sorted(sent)
        ]
        expected, state, _ = aggregate_arrays(alone, base, state, updates)
        # the last to answer first
        replies = [answer(messages[node], sent[node]) for node in sorted(sent, reverse=True)]
        found, _ = flower.aggregate_train(number, replies)
        base = values(found)
        assert {each: array.shape for each, array in base.items()} == SHAPES
        for each, array in expected.items():
            np.testing.assert_allclose(base[each], array, rtol=0, atol=1e-6)


def spoilt() -> dict[str, Mapping[str, np.ndarray] | None]:
    """Return replies that no mean may take in; None for an error."""
    good = {name: np.ones(shape, dtype=np.float32) for name, shape in SHAPES.items() if "lora_B" in name}
    name = min(good)
    return {
        "error": None,
        "a tensor short": {name: good[name]},
        "another shape": good | {name: np.ones((2, 2), dtype=np.float32)},
        "integers": good | {name: np.ones(SHAPES[name], dtype=np.int64)},
        "NaN": good | {name: np.full(SHAPES[name], np.nan, dtype=np.float32)},
        "infinite": good | {name: np.full(SHAPES[name], np.inf, dtype=np.float32)},
        "huge": good | {name: np.full(SHAPES[name], 1e30, dtype=np.float32)},
    }


@pytest.mark.parametrize("how", sorted(spoilt()))
def test_a_bad_reply_is_left_out_and_costs_only_itself(how: str, caplog: pytest.LogCaptureFixture) -> None:
    clean = FlowerStrategy(strategy_named("fedsvd", PlainStep()))
    expected = {node: message for node, message in asked(clean, start()).items() if node != NODES[1]}
    wanted, _ = clean.aggregate_train(1, [answer(message, honest(message)) for message in expected.values()])

    flower = FlowerStrategy(strategy_named("fedsvd", PlainStep()))
    messages = asked(flower, start())
    replies = [answer(message, honest(message)) for node, message in messages.items() if node != NODES[1]]
    arrays = spoilt()[how]
    bad = messages[NODES[1]]
    replies.append(Message(Error(0, "out of memory"), reply_to=bad) if arrays is None else answer(bad, arrays))
    with caplog.at_level(logging.WARNING, logger="server.flower_strategy"):
        found, metrics = flower.aggregate_train(1, replies)
    assert f"node {NODES[1]} is left out" in caplog.text
    assert metrics is not None
    for name, array in values(wanted).items():
        np.testing.assert_array_equal(values(found)[name], array)


def test_a_second_reply_of_a_node_does_not_count() -> None:
    flower = FlowerStrategy(strategy_named("fedsvd", PlainStep()))
    messages = asked(flower, start())
    once, _ = flower.aggregate_train(1, [answer(message, honest(message)) for message in messages.values()])
    flower = FlowerStrategy(strategy_named("fedsvd", PlainStep()))
    messages = asked(flower, start())
    replies = [answer(message, honest(message)) for message in messages.values()]
    twice, _ = flower.aggregate_train(1, [*replies, answer(messages[NODES[0]], honest(messages[NODES[1]]))])
    for name, array in values(once).items():
        np.testing.assert_array_equal(values(twice)[name], array)


def test_without_a_usable_reply_the_model_and_the_state_stay() -> None:
    flower = FlowerStrategy(strategy_named("rolora", RowAdam()))
    messages = asked(flower, start())
    replies = [Message(Error(0, "gone"), reply_to=message) for message in messages.values()]
    assert flower.aggregate_train(1, replies) == (None, None)
    assert flower.aggregate_train(1, []) == (None, None)
    assert flower.state == {}


def test_a_frozen_a_that_travels_back_is_ignored() -> None:
    flower = FlowerStrategy(strategy_named("ffa", PlainStep()))
    messages = asked(flower, start())
    everything = {name: np.full(shape, 9.0, dtype=np.float32) for name, shape in SHAPES.items()}
    found, _ = flower.aggregate_train(1, [answer(message, everything) for message in messages.values()])
    for name, array in values(found).items():
        np.testing.assert_allclose(array, start()[name] if "lora_A" in name else everything[name], rtol=1e-6)


def test_the_callers_configuration_is_not_written_into_and_reaches_the_clients() -> None:
    flower = FlowerStrategy(strategy_named("fedsvd", PlainStep()))
    config = ConfigRecord({"lr": 0.1})
    (first, *_) = flower.configure_train(3, record(start()), config, Nodes())
    assert dict(config) == {"lr": 0.1}
    sent = first.content.config_records["config"]
    assert (sent["lr"], sent["server-round"]) == (0.1, 3)
    assert sent["trained"] == [name for name in sorted(SHAPES) if "lora_B" in name]


def test_a_saved_state_goes_on_as_if_never_stopped() -> None:
    def round_of(flower: FlowerStrategy, base: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        messages = asked(flower, base)
        return values(flower.aggregate_train(1, [answer(m, honest(m)) for m in messages.values()])[0])

    straight = FlowerStrategy(strategy_named("rolora", RowAdam()))
    half = round_of(straight, start())
    kept = {name: array.copy() for name, array in straight.state.items()}
    resumed = FlowerStrategy(strategy_named("rolora", RowAdam()), state=kept)
    whole, again = round_of(straight, half), round_of(resumed, half)
    for name, array in whole.items():
        np.testing.assert_array_equal(again[name], array)


def test_a_node_of_a_smaller_rank_gets_and_moves_its_part_alone() -> None:
    flower = FlowerStrategy(strategy_named("ffa", PlainStep()), ranks={node: 2 for node in NODES[:3]})
    messages = asked(flower, start())
    name = "layer.0.lora_B.weight"
    shapes = [messages[node].content.array_records["arrays"][name].numpy().shape for node in NODES]
    assert shapes == [(20, 2)] * 3 + [(20, 4)]
    sent = {node: honest(message) for node, message in messages.items()}
    found, _ = flower.aggregate_train(1, [answer(messages[node], sent[node]) for node in NODES])
    shared = np.mean([sent[node][name][:, :2] for node in NODES], axis=0)
    np.testing.assert_allclose(values(found)[name][:, :2], shared, rtol=0, atol=1e-6)
    np.testing.assert_allclose(values(found)[name][:, 2:], sent[NODES[3]][name][:, 2:], rtol=0, atol=1e-6)


def test_a_node_that_answers_with_more_than_its_rank_is_left_out() -> None:
    flower = FlowerStrategy(strategy_named("ffa", PlainStep()), ranks={NODES[0]: 2})
    messages = asked(flower, start())
    whole = {name: np.full(shape, 5.0, dtype=np.float32) for name, shape in SHAPES.items()}
    assert flower.aggregate_train(1, [answer(messages[NODES[0]], whole)]) == (None, None)


def test_metrics_are_plain_means_of_what_all_report() -> None:
    flower = FlowerStrategy(strategy_named("fedsvd", PlainStep()))
    messages = asked(flower, start())
    replies = [
        answer(message, honest(message), loss=float(node), **({"extra": 1.0} if node == NODES[0] else {}))
        for node, message in messages.items()
    ]
    _, metrics = flower.aggregate_train(1, replies)
    assert metrics is not None
    assert dict(metrics) == {"loss": np.mean(NODES)}
    assert flower.aggregate_evaluate(1, replies) == metrics
    assert flower.aggregate_evaluate(1, []) is None
    assert dict(mean_metrics([], "num-examples")) == {}
