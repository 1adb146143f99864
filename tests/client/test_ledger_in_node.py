"""What a node writes into its ledger, and that its data epochs bind it."""

from pathlib import Path

import pytest

from client.dataset import NodeData
from client.ledger import Purpose, read_ledger
from client.node import Node
from common.errors import PrivacyError
from common.instructions import PrivacyTerms
from tests.client.federation import ITEMS, Bench, make_data, make_request


def node(path: Path, data: NodeData, epoch: str) -> Node:
    return Node("me", data, path / "ledger.sqlite", 3, data_epoch=epoch)


def test_an_entry_says_what_it_was_for(bench: Bench, tmp_path: Path) -> None:
    for number in (1, 2):
        request = make_request(bench, run="run-x", round=number, strategy="fedit")
        node(tmp_path, make_data(), "1").answer(request, bench.base, bench.encoder, bench.cache)
    entries = read_ledger(tmp_path / "ledger.sqlite").entries
    assert [entry.purpose for entry in entries] == [Purpose("run-x", 1, "fedit"), Purpose("run-x", 2, "fedit")]
    assert all(entry.charged_at > 1_700_000_000_000 for entry in entries)
    assert [entry.budget for entry in entries] == [8.0, 8.0]


def test_a_new_epoch_is_of_new_people(bench: Bench, tmp_path: Path) -> None:
    request = make_request(bench)
    first = node(tmp_path, make_data(), "1").answer(request, bench.base, bench.encoder, bench.cache)
    with pytest.raises(PrivacyError, match="holds a person of data epoch '1'"):
        node(tmp_path, make_data(seed=5), "2").answer(request, bench.base, bench.encoder, bench.cache)
    others = NodeData({f"new-{name}": rows for name, rows in make_data(seed=5).histories.items()}, ITEMS)
    second = node(tmp_path, others, "2").answer(request, bench.base, bench.encoder, bench.cache)
    assert first.meta.epsilon == second.meta.epsilon  # apart, not added up
    again = node(tmp_path, make_data(seed=5), "1").answer(request, bench.base, bench.encoder, bench.cache)
    assert first.meta.epsilon is not None
    assert again.meta.epsilon is not None
    assert again.meta.epsilon > first.meta.epsilon  # new clicks of the same people add up


def test_a_node_that_is_the_unit_has_one_epoch(bench: Bench, tmp_path: Path) -> None:
    request = make_request(bench, privacy=PrivacyTerms("client", 8.0, 1e-3, 1.0))
    node(tmp_path, make_data(), "1").answer(request, bench.base, bench.encoder, bench.cache)
    others = NodeData({f"new-{name}": rows for name, rows in make_data().histories.items()}, ITEMS)
    with pytest.raises(PrivacyError, match="holds a person of data epoch '1'"):
        node(tmp_path, others, "2").answer(request, bench.base, bench.encoder, bench.cache)
