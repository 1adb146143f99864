"""`anabranch keys`, and `anabranch serve` with them."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from typer.testing import CliRunner

from anabranch.commands import keys, recommend
from common.errors import InvalidSetting, ServiceError, UnknownName
from tests.anabranch.test_query_commands import run as run_query
from tests.anabranch.test_query_commands import served
from tests.server.serving.conftest import board_store

app = typer.Typer(pretty_exceptions_enable=False)
app.command("recommend")(recommend.recommend)
app.add_typer(keys.app, name="keys")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def run_json(*arguments: str) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads(run(*arguments, "--json"))
    return payload


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    file = ("--file", str(tmp_path / "keys.json"))
    made = run_json("keys", "new", "shop", "--scope", "write", "--scope", "read", *file)
    assert made["scopes"] == ["read", "write"]
    shown = run("keys", "new", "[red]figures", "--scope", "admin", *file)
    assert "[red]figures" in shown
    assert "anb_" in shown
    listed = run_json("keys", "list", *file)["keys"]
    assert [row["name"] for row in listed] == ["shop", "[red]figures"]
    assert made["key"] not in json.dumps(listed)
    assert run_json("keys", "revoke", made["key_id"], *file)["revoked_at"] > 0
    table = run("keys", "list", *file)
    assert "revoked" in table
    assert "good" in table
    with pytest.raises(UnknownName, match="unknown scope 'all'; expected one of admin, read, write"):
        run("keys", "new", "x", "--scope", "all", *file)
    with pytest.raises(UnknownName, match="unknown key 'x'"):
        run("keys", "revoke", "x", *file)
    with pytest.raises(ServiceError, match="anabranch keys new"):
        run("keys", "list", "--file", str(tmp_path / "nothing.json"))


def test_a_service_with_keys_answers_who_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(tmp_path / "keys.json")
    key = run_json("keys", "new", "me", "--file", file)["key"]
    slates = tmp_path / "slates"
    with served(tmp_path / "store", "--keys", file, "--slate-log", str(slates), "--rate", "100") as (process, url):
        # only now: a text encoder named "words" is nothing that the process could load
        board_store(tmp_path / "store")
        until(lambda: httpx.get(f"{url}/readyz").status_code == 200)
        with pytest.raises(ServiceError, match="answered 401: no API key"):
            run("recommend", "--user", "u0", "--url", url)
        monkeypatch.setenv("ANABRANCH_API_KEY", key)
        until(lambda: run_json("recommend", "--user", "u0", "--url", url)["known_user"])
        assert run_json("recommend", "--user", "u0", "-k", "2", "--url", url)["known_user"] is True
        process.terminate()
        output = "".join(process.communicate(timeout=30))
    assert key not in output
    assert len(list(slates.glob("slates-*.jsonl"))) == 1


def test_settings_that_cannot_be_are_refused_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"key file .* cannot be read"):
        run_query("serve", "--port", "0", "--store", str(tmp_path), "--keys", str(tmp_path / "nothing.json"))
    with pytest.raises(InvalidSetting, match="bootstrap server 'nowhere'"):
        run_query("serve", "--port", "0", "--store", str(tmp_path), "--bootstrap-servers", "nowhere")
