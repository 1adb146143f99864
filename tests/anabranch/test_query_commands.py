"""`anabranch serve`, `recommend` and `model`."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from typer.testing import CliRunner

from anabranch.commands import model, recommend, serve
from common.errors import (
    ArtifactCorrupt,
    InvalidSetting,
    NoModel,
    PortInUse,
    ServiceError,
    StoreError,
    UsageError,
    VersionNotFound,
)
from server.registry import Registry
from server.serving.bundle import VECTORS_FILE
from server.serving.listening import bind, checked_host
from tests.server.serving.conftest import board_store
from tests.server.serving.stores import publish

app = typer.Typer(pretty_exceptions_enable=False)
app.command("serve")(serve.serve)
app.command("recommend")(recommend.recommend)
app.add_typer(model.app, name="model")


def run(*arguments: str) -> str:
    """Run a command; return its stdout, raise what it raises."""
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def run_json(*arguments: str) -> dict[str, Any]:
    """Run a command with --json; its stdout must be that one object."""
    payload: dict[str, Any] = json.loads(run(*arguments, "--json"))
    return payload


@pytest.fixture
def store(tmp_path: Path) -> Registry:
    return board_store(tmp_path / "store")


def test_recommend_as_json_and_as_table(store: Registry) -> None:
    slate = run_json("recommend", "--user", "u0", "-k", "2", "--store", str(store.root))
    assert set(slate) == {"request_id", "model_version", "known_user", "items", "ignored", "answered_from", "policy"}
    assert [item["item_id"] for item in slate["items"]] == ["18", "16"]
    assert "reasons" not in slate["items"][0]
    table = run("recommend", "--history", "1, 3,ghost", "-k", "2", "--explain", "--store", str(store.root))
    assert "you liked Square 3 (factors, text)" in table
    assert "1 unknown item(s)" in table


def test_recommend_needs_something_to_go_by(store: Registry) -> None:
    with pytest.raises(UsageError, match="nothing to recommend for; expected --user, --query or --history"):
        run("recommend", "--store", str(store.root))
    with pytest.raises(InvalidSetting, match="k = 0"):
        run("recommend", "--user", "u0", "-k", "0", "--store", "nowhere")
    with pytest.raises(InvalidSetting, match="an empty query"):
        run("recommend", "--query", " ", "--store", "nowhere")
    with pytest.raises(NoModel, match="nowhere is no model store"):
        run("recommend", "--user", "u0", "--store", "nowhere")
    with pytest.raises(StoreError, match="no stream store at nowhere"):
        run("recommend", "--user", "u0", "--store", str(store.root), "--stream-store", "nowhere")
    with pytest.raises(UsageError, match="--stream-store together with --url"):
        run("recommend", "--user", "u0", "--url", "http://127.0.0.1:9", "--stream-store", "nowhere")


def test_recommend_without_a_service(tmp_path: Path) -> None:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ServiceError, match="no answer from"):
        run("recommend", "--user", "u0", "--url", f"http://127.0.0.1:{port}")
    with pytest.raises(ServiceError, match="no answer from"):
        run("recommend", "--user", "u0", "--url", "no url")
    with pytest.raises(UsageError, match="--version together with --url"):
        run("recommend", "--user", "u0", "--url", "http://x", "--version", "v1")


def test_model_list_and_show(store: Registry) -> None:
    publish(store, "v000002", seed=2, parents=("v000001",))
    listed = run_json("model", "list", "--store", str(store.root))
    assert listed["current"] == "v000002"
    assert [row["version"] for row in listed["versions"]] == ["v000001", "v000002"]
    assert listed["versions"][1]["parents"] == ["v000001"]
    assert listed["versions"][1]["privacy"]["epsilon"] == 3.5
    assert "v000002 (current)" in run("model", "list", "--store", str(store.root))
    shown = run_json("model", "show", "--store", str(store.root))
    assert shown["version"] == "v000002"
    assert shown["base_sha256"] == "5" * 64
    assert shown["files"][VECTORS_FILE]
    assert "fedsvd" in run("model", "show", "v000001", "--store", str(store.root))
    with pytest.raises(VersionNotFound, match="one of v000001, v000002"):
        run("model", "show", "v3", "--store", str(store.root))


def test_promote_and_roll_back(store: Registry) -> None:
    publish(store, "v000002", seed=2, parents=("v000001",))
    where = ("--store", str(store.root))
    assert run_json("model", "rollback", *where) == {"current": "v000001", "before": "v000002"}
    with pytest.raises(StoreError, match="'v000001' has no parent"):
        run("model", "rollback", *where)
    assert run_json("model", "promote", "v000002", *where) == {"current": "v000002", "before": "v000001"}
    assert store.pointer("current") == "v000002"


def test_a_damaged_version_is_found_listed_and_not_promoted(store: Registry) -> None:
    publish(store, "v000002", seed=2)
    store.point("current", "v000001")
    where = ("--store", str(store.root))
    assert run_json("model", "verify", *where)["ok"] is True
    path = store.folder("v000002") / VECTORS_FILE
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.write_bytes(raw)
    for command in ("verify", "promote"):
        with pytest.raises(ArtifactCorrupt, match="SHA-256"):
            run("model", command, "v000002", *where)
    assert store.pointer("current") == "v000001"
    (store.folder("v000002") / "manifest.json").write_bytes(b"{")
    rows = run_json("model", "list", *where)["versions"]
    assert "is not a manifest" in rows[1]["damaged"]
    assert "damaged" in run("model", "list", *where)


def test_a_port_in_use_shows_before_anything_is_loaded(tmp_path: Path) -> None:
    with bind("127.0.0.1", 0) as listener:
        port = str(listener.getsockname()[1])
        with pytest.raises(PortInUse, match=f"port {port} of 127.0.0.1 is in use; expected a free port"):
            run("serve", "--port", port, "--store", str(tmp_path))


@pytest.mark.parametrize("host", ["::", "192.168.1.4", "example.org", ""])
def test_other_machines_are_refused_without_authentication(host: str) -> None:
    with pytest.raises(InvalidSetting, match="no keys were given"):
        run("serve", "--host", host)
    assert checked_host(host, with_keys=True) == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_this_machine_is_served(host: str) -> None:
    assert checked_host(host, with_keys=False) == host


SERVE = "import typer; from anabranch.commands.serve import serve; typer.run(serve)"


@contextmanager
def served(store: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `anabranch serve --json` on a free port; gives the process and its URL."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, "--store", str(store), "--port", "0", "--reload-every", "0.05", "--json", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())["url"]
    finally:
        process.kill()
        process.communicate(timeout=30)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_starts_without_a_model_takes_one_up_and_stops_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    root = tmp_path / "store"
    with served(root) as (process, url):
        assert httpx.get(f"{url}/readyz").status_code == 503
        board_store(root)
        for _ in range(200):
            ready = httpx.get(f"{url}/readyz")
            if ready.status_code == 200 and httpx.get(f"{url}/v1/model").json()["stream"]:
                break
        assert ready.json()["model_version"] == "v000001"
        slate = run_json("recommend", "--user", "u0", "-k", "2", "--url", url)
        assert [item["item_id"] for item in slate["items"]] == ["18", "16"]
        with pytest.raises(UsageError, match="refused the question"):
            run("recommend", "--user", "u0", "-k", "0", "--url", url)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "Traceback" not in stderr
        assert "stopped" in stderr
