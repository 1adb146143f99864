"""The ClientApp: a real Flower message in, a real one out, decoded by the server's own reader."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.app import decode, encode, make_app
from common.array_record import size_of, to_record
from common.datasets.files import write_catalogue, write_interactions
from common.errors import EmptyData, InvalidSetting, PrivacyError
from common.events import Interaction
from common.ids import arrays_sha256, rng_for
from common.instructions import PrivacyTerms, TrainRequest
from common.items import Item
from common.privacy import PrivacySpend
from common.quantise import STEP, dequantise
from common.updates import AdapterUpdate, UpdateMeta
from server.fleet.flower import decode_update
from server.validate import opened, validate
from tests.client.federation import Bench, make_request


@pytest.fixture(autouse=True)
def flower_identity() -> None:
    """Say who this process is, as Flower's runtimes and the in-process fleet do."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1


@pytest.fixture
def config(bench: Bench, tmp_path: Path) -> dict[str, str]:
    """Give the configuration of a node with three users, its files written."""
    write_catalogue(tmp_path / "catalogue.jsonl", [Item(str(i), text, text) for i, text in enumerate(bench.texts)])
    write_interactions(
        tmp_path / "interactions.jsonl",
        [Interaction(f"{u}-{n}", f"u{u}", str((5 * u + n) % 24), "click", n) for u in range(3) for n in range(6)],
    )
    return {
        "client": "node-7",
        "interactions": str(tmp_path / "interactions.jsonl"),
        "catalogue": str(tmp_path / "catalogue.jsonl"),
        "cache": str(tmp_path / "cache"),
        "encoder": bench.encoder.spec.name,
        "device": "cpu",
        "ledger": str(tmp_path / "ledger.sqlite"),
    }


def message_of(request: TrainRequest, base: dict[str, np.ndarray]) -> Message:
    content = RecordDict(
        {
            "adapter": to_record(base),
            "request": ConfigRecord(request.flat()),  # type: ignore[arg-type]  # a union flwr widens
        }
    )
    message = Message(content, dst_node_id=2, message_type=MessageType.TRAIN)
    message.metadata.__dict__["_message_id"] = "m1"
    return message


def ask(request: TrainRequest, base: dict[str, np.ndarray], config: dict[str, str]) -> AdapterUpdate:
    context = Context(run_id=1, node_id=2, node_config=dict(config), state=RecordDict(), run_config={})
    return decode_update(make_app()(message_of(request, base), context).content)


def test_an_answer_passes_the_servers_checks(bench: Bench, config: dict[str, str]) -> None:
    request = make_request(bench)
    update = ask(request, bench.base, config)
    validate(update, request, bench.base)
    assert update.meta.client == "node-7"
    assert set(update.arrays) == set(request.trained)


def test_asked_again_in_another_process_it_gives_the_same_bytes(bench: Bench, config: dict[str, str]) -> None:
    updates = [ask(make_request(bench), bench.base, config) for _ in range(2)]  # each with an app of its own
    assert len({arrays_sha256(update.arrays.items()) for update in updates}) == 1


def test_without_a_guarantee_the_loss_comes_along(bench: Bench, config: dict[str, str]) -> None:
    off = make_request(bench, privacy=PrivacyTerms("off", math.inf, 1e-3, 1.0))
    with pytest.raises(PrivacyError, match="what this node agrees to"):
        ask(off, bench.base, config)
    update = ask(off, bench.base, {**config, "units": "user,off"})
    assert update.meta.metrics["loss"] > 0
    assert update.meta.privacy is None


@pytest.mark.parametrize("name", ["interactions", "catalogue", "encoder", "cache", "ledger"])
def test_a_node_without_a_path_says_which(bench: Bench, config: dict[str, str], name: str) -> None:
    del config[name]
    with pytest.raises(InvalidSetting, match=f"a node without '{name}' in its configuration"):
        ask(make_request(bench), bench.base, config)


def test_a_node_without_users_says_so(bench: Bench, config: dict[str, str]) -> None:
    write_interactions(Path(config["interactions"]), [])
    with pytest.raises(EmptyData, match="the node takes no part"):
        ask(make_request(bench), bench.base, config)
    assert not Path(config["ledger"]).exists()


def test_new_interactions_are_read_and_charged(bench: Bench, config: dict[str, str]) -> None:
    roomy = make_request(bench, planned_steps=50)
    first = ask(roomy, bench.base, config)
    write_interactions(Path(config["interactions"]), [Interaction(str(n), "u", str(n), "click", n) for n in range(6)])
    second = ask(roomy, bench.base, config)
    assert first.meta.epsilon is not None
    assert second.meta.epsilon is not None
    assert second.meta.epsilon > first.meta.epsilon
    assert arrays_sha256(first.arrays.items()) != arrays_sha256(second.arrays.items())


def test_a_message_reads_back_as_it_was_written(bench: Bench) -> None:
    request, adapter = decode(message_of(make_request(bench), bench.base))
    assert request == make_request(bench)
    assert arrays_sha256(adapter.items()) == arrays_sha256(bench.base.items())


@pytest.mark.parametrize("private", [True, False])
def test_an_update_reads_back_as_it_was_written(private: bool) -> None:
    spend = PrivacySpend("example", 1e-5, ((1.5, 0.25, 3), (2.0, 0.5, 1)))
    meta = UpdateMeta("c", "b", "s", 4, 2.5, spend if private else None, 1.25 if private else None, {"loss": 0.5})
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "y": np.full((1, 1), np.nan, dtype=np.float32)}
    found = decode_update(encode(AdapterUpdate(meta, arrays)))
    assert found.meta == meta
    assert arrays_sha256(found.arrays.items()) == arrays_sha256(arrays.items())


def test_a_private_update_tells_no_metric(bench: Bench, config: dict[str, str]) -> None:
    update = ask(replace(make_request(bench), round=2), bench.base, config)
    assert dict(update.meta.metrics) == {}


def test_in_8_bits_the_numbers_are_those_of_the_update_to_a_step() -> None:
    rng = rng_for("numbers")
    arrays = {name: rng.standard_normal((40, 30)).astype(np.float32) for name in ("x", "y")}
    update = AdapterUpdate(UpdateMeta("c", "b", "s", 4, 2.5), arrays)
    first, again = (encode(update, "int8") for _ in range(2))
    found = decode_update(first)
    numbers = dequantise(found.arrays)
    assert all(np.abs(numbers[name] - arrays[name]).max() <= found.arrays[name + STEP] for name in arrays)
    sizes = [size_of(each.array_records["update"]) for each in (first, encode(update))]
    assert sizes[0] < 0.3 * sizes[1]
    # the draws follow from the arrays: the same release is the same bytes
    assert arrays_sha256(decode_update(again).arrays.items()) == arrays_sha256(found.arrays.items())


def test_a_node_asked_for_8_bits_answers_in_8_bits(bench: Bench, config: dict[str, str]) -> None:
    request = make_request(bench, uplink="int8")
    update = ask(request, bench.base, config)
    assert {array.dtype.name for name, array in update.arrays.items() if not name.endswith(STEP)} == {"int8"}
    validate(opened(update, request), request, bench.base)
