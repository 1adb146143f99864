"""`anabranch stream` and `anabranch broker`."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from anabranch.commands import stream
from common.errors import (
    CheckpointMismatch,
    DataError,
    InvalidSetting,
    MalformedEvent,
    NoModel,
    PortInUse,
    StoreMismatch,
)
from common.events import Interaction, encode_event
from common.snapshots import read_snapshot
from stream.broker import EmbeddedBroker, speaks_kafka
from stream.checkpoint import SNAPSHOTS, CheckpointStore
from stream.kafka_log import KafkaLog

app = typer.Typer(pretty_exceptions_enable=False)
app.command("broker")(stream.broker)
app.add_typer(stream.app, name="stream")

DATA = "synthetic:users=40,items=30,events=600"
LEARN_KEYS = {
    "events", "learned", "duplicates_skipped", "dead_letters", "drift_alarms", "offsets", "state_sha256", "metrics",
    "seconds", "resumed_from",
}  # fmt: skip


def run(*arguments: str, stdin: bytes | None = None) -> str:
    """Run a command; return its stdout, raise what it raises."""
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"}, input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def run_json(*arguments: str, stdin: bytes | None = None) -> dict[str, Any]:
    """Run a command with --json; its stdout must be that one object."""
    payload: dict[str, Any] = json.loads(run(*arguments, "--json", stdin=stdin))
    return payload


@pytest.fixture
def servers() -> Iterator[str]:
    with EmbeddedBroker() as broker:
        yield broker.bootstrap_servers


def test_produce_learn_status(servers: str, tmp_path: Path) -> None:
    where = ["--bootstrap-servers", servers]
    sent = run_json("stream", "produce", "--data", DATA, *where)
    assert (sent["sent"], sent["acked"], sent["resumed_from"]) == (600, 600, 0)
    assert "600 of 600" in run("stream", "produce", "--data", DATA, *where, "--topic", "again")
    store = ["--store", str(tmp_path / "store")]
    learned = run_json("stream", "learn", *where, *store, "--until-events", "600", "--factors", "8")
    assert learned.keys() >= LEARN_KEYS
    assert learned["offsets"] == {"clicks": {"0": 600}}
    assert {"recall@10", "ndcg@10", "ci95"} <= learned["metrics"]["ours"].keys() & learned["metrics"][
        "popularity"
    ].keys()
    other = ["--store", str(tmp_path / "other"), "--topic", "again", "--idle-timeout", "0.5", "--factors", "8"]
    again = run_json("stream", "learn", *where, *other)
    assert again["state_sha256"] == learned["state_sha256"]
    assert "recall@10" in run("stream", "learn", *where, *store, "--until-events", "600", "--factors", "8")
    status = run_json("stream", "status", *store)
    assert (status["events"], status["offsets"]) == (600, learned["offsets"])
    assert status["age_seconds"] >= 0
    assert read_snapshot(tmp_path / "store" / SNAPSHOTS / status["snapshot"]).blend is not None
    assert "600 events" in run("stream", "status", *store)


@pytest.mark.parametrize("kind", ["mf", "pointwise"])
def test_another_learner_where_it_is_asked_for(servers: str, tmp_path: Path, kind: str) -> None:
    where = ["--bootstrap-servers", servers]
    run("stream", "produce", "--data", DATA, "--limit", "50", *where)
    store = ["--store", str(tmp_path), "--until-events", "50"]
    learned = run_json("stream", "learn", *where, *store, "--learner", kind, "--factors", "8")
    status = run_json("stream", "status", "--store", str(tmp_path))
    assert read_snapshot(tmp_path / SNAPSHOTS / status["snapshot"]).blend is None
    with pytest.raises(CheckpointMismatch, match=f"--learner {kind} goes on with it"):
        run("stream", "learn", *where, *store)
    again = run_json("stream", "learn", *where, *store, "--learner", kind, "--factors", "8")
    assert again["state_sha256"] == learned["state_sha256"]


def test_what_the_pointwise_learner_cannot_do_is_refused(tmp_path: Path) -> None:
    for option in (["--repeats"], ["--ttl-days", "3"], ["--replay", "5"]):
        with pytest.raises(InvalidSetting, match="--learner pointwise"):
            run("stream", "learn", "--store", str(tmp_path), "--learner", "pointwise", *option)


def test_replay_is_a_setting_of_the_learner(servers: str, tmp_path: Path) -> None:
    where = ["--bootstrap-servers", servers]
    run("stream", "produce", "--data", DATA, "--limit", "50", *where)
    learn = ["stream", "learn", *where, "--store", str(tmp_path), "--until-events", "50", "--factors", "8"]
    learned = run_json(*learn, "--replay", "4")
    again = run_json(*learn, "--replay", "4")
    assert again["state_sha256"] == learned["state_sha256"]
    with pytest.raises(CheckpointMismatch, match='"replay":4'):
        run(*learn)


def test_limit_and_start(servers: str) -> None:
    part = ["--limit", "25", "--start-at", "100"]
    sent = run_json("stream", "produce", "--data", DATA, "--bootstrap-servers", servers, *part)
    assert (sent["sent"], sent["resumed_from"]) == (25, 100)


def test_files_and_stdin(servers: str, tmp_path: Path) -> None:
    lines = b"\n".join(encode_event(Interaction(f"e{n}", "u", f"i{n}", "click", n)) for n in range(5)) + b"\n\n"
    path = tmp_path / "events.jsonl"
    path.write_bytes(lines)
    where = ["--bootstrap-servers", servers]
    assert run_json("stream", "produce", "--data", str(path), *where)["acked"] == 5
    script = "import sys; from anabranch.cli import main; sys.argv = ['anabranch', *sys.argv[1:]]; main()"
    command = [sys.executable, "-c", script, "stream", "produce", "--data", "-", *where, "--json"]
    piped = subprocess.run(command, input=lines, capture_output=True, timeout=120, check=False)
    assert piped.returncode == 0, piped.stderr
    assert json.loads(piped.stdout)["acked"] == 5
    path.write_bytes(lines + b'{"v":9}\n')
    with pytest.raises(MalformedEvent, match="line 7 of"):
        run("stream", "produce", "--data", str(path), *where)
    with pytest.raises(DataError, match=r"none\.jsonl cannot be read"):
        run("stream", "produce", "--data", str(tmp_path / "none.jsonl"), *where)


def test_a_table_goes_to_the_topic(servers: str, tmp_path: Path) -> None:
    path = tmp_path / "clicks.csv"
    path.write_text("who,what,at\n" + "".join(f"u{n % 3},i{n},{1_700_000_000 + n}\n" for n in range(9)))
    where = ["--bootstrap-servers", servers, "--topic", "table", "--journal", str(tmp_path / "sent.json")]
    columns = ["--user", "who", "--item", "what", "--time", "at"]
    assert run_json("stream", "produce", "--data", str(path), *columns, *where, "--limit", "4")["acked"] == 4
    rest = run_json("stream", "produce", "--data", str(path), *columns, *where)
    assert (rest["acked"], rest["resumed_from"]) == (5, 4)
    for options, text in (
        ([], "--user, --item and --time"),
        (columns[:2], "all three"),
        (["--value", "x"], "all three"),
    ):
        with pytest.raises(InvalidSetting, match=text):
            run("stream", "produce", "--data", str(path), *options, *where)


def test_dead_letters_are_listed_saved_mended_and_sent_again(servers: str, tmp_path: Path) -> None:
    where = ["--bootstrap-servers", servers]
    store = ["--store", str(tmp_path / "store"), "--learner", "mf", "--factors", "8", "--idle-timeout", "0.5"]
    assert "no dead letters" in run("stream", "replay-dead-letters", *where)
    good = encode_event(Interaction("e-broken", "u", "i", "click", 5))
    log = KafkaLog(servers)
    log.ensure_topic("clicks")
    sink = log.sink("test")
    sink.send("clicks", good[:-1], partition=0)
    sink.flush(10)
    sink.close()
    assert run_json("stream", "learn", *where, *store)["dead_letters"] == 1
    saved = tmp_path / "letters.jsonl"
    listed = run_json("stream", "replay-dead-letters", *where, "--dry-run", "--save", str(saved))
    assert [(x["offset"], x["attempts"], x["replayed"]) for x in listed["letters"]] == [(0, 1, False)]
    assert "MalformedEvent" in run("stream", "replay-dead-letters", *where, "--dry-run")
    letter = json.loads(saved.read_text())
    saved.write_text(json.dumps({**letter, "value": good.decode()}))
    sent = run_json("stream", "replay-dead-letters", *where, "--mended", str(saved))
    assert (sent["replayed"], sent["replayed_before"]) == (1, 0)
    assert "0 of 1 letters" in run("stream", "replay-dead-letters", *where, "--mended", str(saved))
    learned = run_json("stream", "learn", *where, *store)
    assert (learned["learned"], learned["dead_letters"]) == (1, 1)


def test_logs_may_be_json_and_figures_are_served(servers: str, tmp_path: Path) -> None:
    run("stream", "produce", "--data", DATA, "--bootstrap-servers", servers)
    script = "import sys; from anabranch.cli import main; sys.argv = ['anabranch', *sys.argv[1:]]; main()"
    options = ["--store", str(tmp_path), "--learner", "mf", "--idle-timeout", "1", "--log-format", "json", "--json"]
    command = [sys.executable, "-c", script, "stream", "learn", *options, "--metrics-port", "0"]
    done = subprocess.run([*command, "--bootstrap-servers", servers], capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["events"] == 600
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert all(line.keys() >= {"time", "level", "logger", "message"} for line in lines)
    assert any("/metrics" in line["message"] for line in lines)
    assert [line["events"] for line in lines if line["message"] == "checkpoint"][-1] == 600
    nobody = subprocess.run([*command, "--bootstrap-servers", "nowhere"], capture_output=True, timeout=120, check=False)
    assert nobody.returncode == 2
    last = json.loads(nobody.stderr.splitlines()[-1])
    assert (last["level"], last["error"]) == ("error", "InvalidSetting")


def test_sigterm_stores_what_was_learned(servers: str, tmp_path: Path) -> None:
    run("stream", "produce", "--data", DATA, "--bootstrap-servers", servers)
    script = "import sys; from anabranch.cli import main; sys.argv = ['anabranch', *sys.argv[1:]]; main()"
    # no checkpoint of its own accord: only the signal makes one
    options = ["--bootstrap-servers", servers, "--store", str(tmp_path), "--checkpoint-seconds", "1000", "--json"]
    with subprocess.Popen(
        [sys.executable, "-c", script, "stream", "learn", *options, "--checkpoint-every", "300"],
        stdout=subprocess.PIPE,
    ) as worker:
        deadline = time.monotonic() + 60
        while CheckpointStore(tmp_path).newest(pytest.fail) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        worker.send_signal(signal.SIGTERM)
        out, _ = worker.communicate(timeout=30)
    assert worker.returncode == 0
    checkpoint = CheckpointStore(tmp_path).newest(pytest.fail)
    assert checkpoint is not None
    assert checkpoint.details["events"] == json.loads(out)["events"] >= 300


def test_status_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(NoModel, match="no checkpoint"):
        run("stream", "status", "--store", str(tmp_path))


def test_bad_settings_are_named_before_anything_is_fetched() -> None:
    with pytest.raises(InvalidSetting, match="speed"):
        run("stream", "produce", "--data", DATA, "--speed", "fast")
    with pytest.raises(InvalidSetting, match="nowhere"):
        run("stream", "learn", "--bootstrap-servers", "nowhere")
    result = CliRunner().invoke(app, ["stream", "learn", "--on-new-topic", "maybe"])
    assert result.exit_code == 2


def test_the_broker_runs_until_it_is_stopped() -> None:
    with EmbeddedBroker() as probe:
        port = probe.port
    script = "import sys; from anabranch.cli import main; sys.argv = ['anabranch', *sys.argv[1:]]; main()"
    command = [sys.executable, "-c", script, "broker", "--port", str(port), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"bootstrap_servers": f"127.0.0.1:{port}"}
        assert speaks_kafka("127.0.0.1", port)
        with pytest.raises(PortInUse, match=str(port)):
            run("broker", "--port", str(port))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert not speaks_kafka("127.0.0.1", port)


def test_workers_that_share_a_topic(servers: str, tmp_path: Path) -> None:
    where, store = ["--bootstrap-servers", servers], ["--store", str(tmp_path / "store")]
    run("stream", "produce", "--data", DATA, *where, "--partitions", "3")
    ours = ["--learner", "mf", "--factors", "8"]
    first = run_json("stream", "learn", *where, *store, *ours, "--scale-out", "--until-events", "300")
    assert (first["events"], first["resumed_from"]) == (300, 0)
    learned = run_json("stream", "learn", *where, *store, *ours, "--scale-out", "--until-events", "600")
    assert (learned["events"], learned["resumed_from"]) == (600, 300)
    assert learned.keys() >= LEARN_KEYS
    assert learned["metrics"]["ours"]["us_per_event"] > 0
    status = run_json("stream", "status", *store)
    assert (status["events"], status["offsets"]) == (600, learned["offsets"])
    assert status["claims"].keys() == {"0", "1", "2"}
    assert 2 in status["claims"].values()  # one that the first run had read to its end is not stored again
    assert read_snapshot(tmp_path / "store" / SNAPSHOTS / status["snapshot"]).events == learned["learned"]
    shown = run("stream", "status", *store)
    assert "3 partitions, shared" in shown
    assert "owner number 2" in shown
    with pytest.raises(StoreMismatch, match="add --scale-out"):
        run("stream", "learn", *where, *store, *ours)


def test_what_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    for options in (["--learner", "pointwise"], ["--ttl-days", "3"], ["--admit-at", "2"]):
        with pytest.raises(InvalidSetting, match="can be shared"):
            run("stream", "learn", "--store", str(tmp_path), "--scale-out", *options)
    with pytest.raises(InvalidSetting, match="member 'no name'"):
        run("stream", "learn", "--store", str(tmp_path), "--scale-out", "--member", "no name")
    with pytest.raises(InvalidSetting, match="--member without --scale-out"):
        run("stream", "learn", "--store", str(tmp_path), "--member", "one")
