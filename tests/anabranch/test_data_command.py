"""`anabranch data` as people type it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from anabranch.commands.data import app
from common.errors import AnabranchError, ColumnMissing, UnknownName

CSV = "customer,sku,at,words\nu1,a,2024-01-01,red mug\nu2,b,2024-01-02,[bold]blue[/bold] mug\n,b,2024-01-02,x\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the user's cache out of it."""
    monkeypatch.setenv("ANABRANCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run(*arguments: str) -> tuple[str, str]:
    """Run the command; give stdout and stderr, or raise what it raised."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result.stdout, result.stderr


def run_json(*arguments: str) -> dict[str, Any]:
    """Run the command with --json; stdout must be exactly one object."""
    stdout, _ = run(*arguments, "--json")
    assert len(stdout.splitlines()) == 1
    payload: dict[str, Any] = json.loads(stdout)
    return payload


def imported(folder: Path) -> dict[str, Any]:
    """Import the small file as `shop`."""
    (folder / "clicks.csv").write_text(CSV, "utf-8")
    columns = ["--user", "customer", "--item", "sku", "--time", "at", "--text", "words"]
    return run_json("import", "shop", str(folder / "clicks.csv"), *columns)


def test_list_shows_what_is_built_in(own_cache: Path) -> None:
    listed = run_json("list")
    assert [row["name"] for row in listed["datasets"]] == [
        "movielens-100k",
        "movielens-latest-small",
        "online-retail",
        "synthetic",
    ]
    assert [row["cached"] for row in listed["datasets"]] == [False, False, False, True]
    assert all(row["licence"] and row["source"] for row in listed["datasets"])
    assert listed["cache"] == str(own_cache)
    assert not own_cache.exists()


def test_import_then_list_and_describe(tmp_path: Path) -> None:
    stored = imported(tmp_path)
    assert (stored["name"], stored["users"], stored["items"], stored["interactions"]) == ("shop", 2, 2, 2)
    assert sum(stored["dropped"].values()) == 1
    assert run_json("list")["datasets"][-1]["name"] == "shop"
    described = run_json("describe", "shop")
    assert (described["users"], described["interactions"], described["positives"]) == (2, 2, 2)
    assert (described["first"], described["last"]) == ("2024-01-01T00:00:00+00:00", "2024-01-02T00:00:00+00:00")
    assert described["density"] == 0.5
    assert described["items_without_text"] == 0
    assert [item["text"] for item in described["sample"]] == ["red mug", "[bold]blue[/bold] mug"]


def test_tables_show_brackets_as_they_are_and_notices_go_to_stderr(tmp_path: Path) -> None:
    imported(tmp_path)
    stdout, stderr = run("describe", "shop")
    assert "[bold]blue[/bold] mug" in stdout
    assert stderr == ""
    columns = ["--user", "customer", "--item", "sku", "--time", "at"]
    stdout, stderr = run("import", "shop", str(tmp_path / "clicks.csv"), *columns)
    assert "2 users, 2 items, 2 interactions" in stdout
    assert "ISO 8601" in stderr
    assert "left out" in stderr


def test_describe_synthetic_depends_on_the_seed() -> None:
    name = "synthetic:users=20,items=30,events=200"
    one, same, other = (run_json("describe", name, "--seed", seed) for seed in ("1", "1", "2"))
    assert one == same != other
    assert (one["users"], one["items"], one["interactions"]) == (20, 30, 200)
    assert len(one["sample"]) == 5


def test_errors_are_of_the_tree_and_change_nothing(tmp_path: Path, own_cache: Path) -> None:
    with pytest.raises(UnknownName, match="movielens-100k"):
        run("describe", "movielens-1oo k")
    (tmp_path / "clicks.csv").write_text(CSV, "utf-8")
    with pytest.raises(ColumnMissing, match="customer, sku, at, words"):
        run("import", "shop", str(tmp_path / "clicks.csv"), "--user", "who", "--item", "sku", "--time", "at")
    with pytest.raises(AnabranchError, match="--from FILE"):
        run("fetch", "online-retail")
    assert not own_cache.exists()


@pytest.mark.parametrize("command", ["list", "fetch", "describe", "import"])
def test_help_has_an_example(command: str) -> None:
    stdout, _ = run(command, "--help")
    assert f"Example:  anabranch data {command}" in stdout


def test_fetch_says_the_licence_once(shared_data: Path) -> None:
    origin = str(shared_data / "movielens-100k")
    stdout, stderr = run("fetch", "movielens-100k", "--from", origin)
    assert "943 users, 1,682 items, 100,000 interactions" in stdout
    assert "GroupLens" in stderr
    stdout, stderr = run("fetch", "movielens-100k")
    assert "GroupLens" not in stderr
    assert os.listdir(shared_data / "movielens-100k")
