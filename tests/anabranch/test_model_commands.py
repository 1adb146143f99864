"""`anabranch model diff|export|copy|gc|verify --all` and names other than current, as a person types them."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from anabranch.commands import model
from common.errors import AnabranchError, ArtifactCorrupt, InvalidSetting, NoModel, StoreError, VersionNotFound
from common.store import pack_arrays
from server.registry import Registry
from tests.server.serving.stores import new_store, version_files, version_manifest

app = typer.Typer(pretty_exceptions_enable=False)
app.add_typer(model.app, name="model")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["model", *arguments], env={"COLUMNS": "160"})


def run(*arguments: str) -> str:
    """Run a command; return its stdout, raise what it raises."""
    result = invoke(*arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def run_json(*arguments: str) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads(run(*arguments, "--json"))
    return payload


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Give a store with v1 to v4, each made from the one before; v2 is current."""
    registry = new_store(tmp_path / "store")
    for number in range(1, 5):
        parents = (f"v{number - 1}",) if number > 1 else ()
        made = version_manifest(f"v{number}", parents=parents, created_at=number)
        adapter = {
            "base_model.model.encoder.layer.0.query.lora_A.weight": np.eye(2, 4, dtype=np.float32),
            "base_model.model.encoder.layer.0.query.lora_B.weight": np.full((3, 2), number, dtype=np.float32),
        }
        files = {
            **version_files(registry, number),
            "adapter/adapter_model.safetensors": pack_arrays(adapter),
            "adapter/adapter_config.json": b'{"r": 2, "lora_alpha": 4}',
        }
        registry.publish(files, replace(made, details={**made.details, "round": number}))
    registry.point("current", "v2")
    return registry


def test_names_move_apart_from_each_other(registry: Registry) -> None:
    where = ("--store", str(registry.root))
    moved = run_json("promote", "v4", "--name", "champion", *where)
    assert moved == {"champion": "v4", "before": None}
    assert run_json("promote", "champion", "--name", "candidate", *where) == {"candidate": "v4", "before": None}
    assert run_json("rollback", "--name", "champion", *where) == {"champion": "v3", "before": "v4"}
    listed = run_json("list", *where)
    assert listed["pointers"] == {"current": "v2", "champion": "v3", "candidate": "v4"}
    assert listed["current"] == "v2"
    assert "v3 (champion)" in run("list", *where)
    assert run_json("show", "champion", *where)["version"] == "v3"
    with pytest.raises(NoModel, match="the name 'other' is not set"):
        run("rollback", "--name", "other", *where)
    for wrong in ("../current", ".hidden", ""):
        with pytest.raises(InvalidSetting, match="pointer name"):
            run("promote", "v1", "--name", wrong, *where)
    with pytest.raises(VersionNotFound, match="one of v1, v2, v3, v4"):
        run("promote", "v9", "--name", "champion", *where)


def test_rollback_to_a_version_that_is_gone_says_so(registry: Registry) -> None:
    where = ("--store", str(registry.root))
    registry.storage.delete("v1")
    with pytest.raises(VersionNotFound, match="no version 'v1'"):
        run("rollback", *where)
    assert registry.pointer("current") == "v2"


def test_diff_as_json_and_as_tables(registry: Registry) -> None:
    where = ("--store", str(registry.root))
    found = run_json("diff", "v1", "--top", "3", *where)
    assert (found["a"], found["b"]) == ("v1", "v2")
    assert found["metrics"]["global"]["recall@10"] == {"a": 0.25, "b": 0.25}
    assert found["privacy"]["epsilon"] == {"a": 3.5, "b": 3.5}
    assert found["settings"]["round"] == {"a": 1, "b": 2}
    (layer,) = found["adapter"]
    # alpha / r * B A: two columns of three rows, all 2 * number
    assert layer["layer"] == "encoder.layer.0.query"
    assert layer["norm_a"] == pytest.approx(2 * 6**0.5)
    assert layer["difference"] == pytest.approx(2 * 6**0.5)
    assert len(found["items"]["moved_most"]) == 3
    assert found["items"]["moved_most"][0]["distance"] >= found["items"]["mean_distance"] > 0
    drawn = run("diff", "v1", "v4", *where)
    for text in ("encoder.layer.0.query", "round", "Square", "v1 to v4"):
        assert text in drawn
    with pytest.raises(VersionNotFound):
        run("diff", "v1", "v9", *where)
    assert invoke("diff", *where).exit_code == 2
    assert invoke("diff", "v1", "--top", "-1", *where).exit_code == 2


def test_export_writes_a_folder_once(registry: Registry, tmp_path: Path) -> None:
    where = ("--store", str(registry.root))
    made = run_json("export", "v3", "--to", str(tmp_path / "adapter"), *where)
    assert made["version"] == "v3"
    assert set(made["files"]) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "Trained on `checker-board`. Its licence is not known here" in card
    assert "per **user**: epsilon **3.5** at delta 1e-05" in card
    with pytest.raises(InvalidSetting, match="is there already"):
        run("export", "v3", "--to", str(tmp_path / "adapter"), *where)
    with pytest.raises(VersionNotFound):
        run("export", "v9", "--to", str(tmp_path / "other"), *where)
    assert not (tmp_path / "other").exists()


def test_a_licence_that_is_known_is_in_the_card(registry: Registry, tmp_path: Path) -> None:
    info = replace(registry.info, data="movielens-100k")
    other = Registry.create(tmp_path / "films", info, registry.catalogue)
    other.publish({name: registry.read("v1", name) for name in registry.manifest("v1").files}, version_manifest("v1"))
    run("export", "v1", "--to", str(tmp_path / "adapter"), "--store", str(tmp_path / "films"))
    assert "GroupLens" in (tmp_path / "adapter" / "README.md").read_text()


def test_copy_to_an_address_and_work_there(registry: Registry, tmp_path: Path) -> None:
    there = f"memory://{tmp_path.name}/models"
    assert run_json("copy", "current", "--to", there, "--store", str(registry.root)) == {
        "version": "v2",
        "store": there,
    }
    assert run_json("promote", "v2", "--store", there) == {"current": "v2", "before": None}
    assert run_json("verify", "--all", "--store", there)["ok"] is True
    with pytest.raises(StoreError, match=r"'v2' of .* exists already"):
        run("copy", "v2", "--to", there, "--store", str(registry.root))
    with pytest.raises(NoModel, match="is no model store"):
        run("list", "--store", "memory://nowhere/models")
    with pytest.raises(StoreError, match=r"pip install 'anabranch\[remote\]'"):
        run("list", "--store", "nonsense://models")
    assert invoke("copy", "v2", "--store", str(registry.root)).exit_code == 2


def test_gc_says_and_does(registry: Registry) -> None:
    where = ("--store", str(registry.root), "--keep", "1")
    said = run_json("gc", "--dry-run", *where)
    assert said["dry_run"] is True
    assert said["removed"] == []
    assert said["kept"] == {
        "v4": "among the newest",
        "v3": "parent of v4",
        "v2": "current stands for it",
        "v1": "parent of v2",
    }
    registry.point("current", "v4")
    said = run_json("gc", "--dry-run", *where)
    assert said["removed"] == ["v1", "v2"]
    assert registry.names() == ("v1", "v2", "v3", "v4")
    assert "2 version(s) would go" in run("gc", "--dry-run", *where)
    done = run_json("gc", *where)
    assert (done["removed"], done["freed"], done["leftovers"]) == (["v1", "v2"], said["freed"], 0)
    assert registry.names() == ("v3", "v4")
    assert "0 version(s) are gone" in run("gc", *where)
    with pytest.raises(InvalidSetting, match="keep = 0"):
        run("gc", "--keep", "0", "--store", str(registry.root))
    assert invoke("gc", "--keep", "many").exit_code == 2


def test_verify_all_names_every_damage_and_ends_with_1(registry: Registry) -> None:
    where = ("--store", str(registry.root), "--json")
    whole = json.loads(invoke("verify", "--all", *where).stdout)
    assert whole["ok"] is True
    assert set(whole["versions"]) == {"v1", "v2", "v3", "v4"}
    path = registry.folder("v3") / "manifest.json"
    # a number in a claim: no file's hash covers it
    path.write_bytes(path.read_bytes().replace(b"3.5", b"1.5"))
    (registry.root / "pointers" / "champion").write_bytes(b"v9\n")
    result = invoke("verify", "--all", *where)
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert [name for name, row in found["versions"].items() if not row["ok"]] == ["v3"]
    assert "manifest.json has SHA-256" in found["versions"]["v3"]["error"]
    assert found["lost_pointers"] == {"champion": "stands for v9, which is not there"}
    table = invoke("verify", "--all", "--store", str(registry.root))
    assert table.exit_code == 1
    assert "champion: stands for v9, which is not there" in table.stdout
    for command in (("verify", "v3"), ("promote", "v3"), ("show", "v3"), ("export", "v3")):
        with pytest.raises(ArtifactCorrupt, match=r"manifest\.json has SHA-256"):
            run(*command, "--store", str(registry.root))


@pytest.mark.parametrize("remote", [False, True])
def test_a_damaged_name_is_found_and_mended_by_promoting(registry: Registry, tmp_path: Path, remote: bool) -> None:
    address = str(registry.root)
    if remote:
        address = f"memory://{tmp_path.name}/damaged"
        run("copy", "v2", "--to", address, "--store", str(registry.root))
        run("promote", "v2", "--store", address)
    storage = Registry.open(address).storage
    storage.write("pointers/current", storage.read("pointers/current").replace(b"v2", b"v3"))
    result = invoke("verify", "--all", "--json", "--store", address)
    assert result.exit_code == 1
    assert "is not a version and its check" in json.loads(result.stdout)["lost_pointers"]["current"]
    for command in (("list",), ("show",), ("rollback",), ("gc",)):
        with pytest.raises(ArtifactCorrupt, match="to mend it: anabranch model promote"):
            run(*command, "--store", address)
    assert run_json("promote", "v2", "--store", address) == {"current": "v2", "before": None}
    assert run_json("verify", "--all", "--store", address)["ok"] is True


def test_an_error_is_one_line_on_stderr_and_exit_1(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "anabranch.cli", "model", "diff", "v1", "v2", "--store", str(tmp_path), "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"anabranch: {tmp_path} is no model store")
    assert done.stderr.count("\n") == 1
    assert issubclass(NoModel, AnabranchError)
