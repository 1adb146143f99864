"""A real federation, with TLS and node keys: it comes to the adapter of worker processes, whoever is killed."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from anabranch.deployment import write_supernode
from tests.integration.supernodes import Federation, answers, free_ports, in_process


def test_who_is_not_known_or_not_encrypted_is_not_let_in(tiny_bert: Path, tmp_path: Path) -> None:
    with Federation(tmp_path, tiny_bert) as federation:
        federation.start_superlink()
        assert not answers(f"http://127.0.0.1:{federation.port}/health")
        assert not answers(f"https://127.0.0.1:{federation.port}/health", ssl.create_default_context())
        stranger = tmp_path / "stranger"
        write_supernode(
            stranger, f"127.0.0.1:{federation.port}", {"client": "stranger"},
            authority=(federation.superlink / "ca.pem").read_bytes(), port=free_ports(1)[0],
        )  # fmt: skip
        process = federation.start(stranger)
        assert process.wait(60) != 0
        assert "Failed to activate SuperNode" in (stranger / "log.txt").read_text()


@pytest.fixture(scope="module")
def federation(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Run a SuperLink with three registered SuperNodes."""
    with Federation(tmp_path_factory.mktemp("federation"), tiny_bert) as made:
        made.start_superlink()
        for home in made.nodes:
            made.flwr("supernode", "register", str(home / "node.pub"))
            made.start(home)
        yield made


@pytest.fixture(scope="module")
def expected(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the adapter of one worker process, which is that of four."""
    hashes = {in_process(tiny_bert, tmp_path_factory.mktemp("in-process") / "store", workers) for workers in (1, 4)}
    assert len(hashes) == 1
    return hashes.pop()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_supernodes_come_to_the_adapter_of_worker_processes(federation: Federation, expected: str) -> None:
    federation.run("straight")
    assert federation.wait_for_version("straight") == expected
    assert [record.replied for record in federation.history("straight")] == [3, 3, 3]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_superlink_goes_on_from_its_store_to_the_same_adapter(federation: Federation, expected: str) -> None:
    federation.forget()
    federation.run("killed")
    federation.wait_for_round("killed", 1)
    federation.kill(federation.superlink)
    assert len(federation.history("killed")) < 3
    federation.start_superlink()
    federation.run("killed")
    assert federation.wait_for_version("killed") == expected
    assert [record.replied for record in federation.history("killed")] == [3, 3, 3]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_supernode_costs_its_replies_alone(federation: Federation) -> None:
    federation.forget()
    federation.run("short")  # Flower tells of a node that has been silent for a minute, long before the timeout
    federation.wait_for_round("short", 1)
    federation.kill(federation.nodes[1])
    federation.wait_for_version("short")
    first, *later = federation.history("short")
    assert (first.replied, len(first.failed)) == (3, 0)
    assert [record.replied for record in later] == [2, 2]
    assert all(record.failed.keys() == {"3"} for record in later)  # numbers count from 2, in the order of the names


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_without_rounds_and_in_8_bits_the_nodes_answer_as_they_come(federation: Federation) -> None:
    federation.start_missing()
    federation.forget()
    federation.run("buffered", mode='"async"', buffer=2, uplink='"int8"')
    federation.wait_for_version("buffered")
    history = federation.history("buffered")
    assert [record.replied for record in history] == [len(record.staleness) for record in history] == [2, 2, 2]
    assert all(record.moment is None for record in history)  # nobody simulates a clock here
    assert all(record.reply_bytes < record.down_bytes / 4 for record in history)
