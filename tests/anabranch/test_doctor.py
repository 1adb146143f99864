"""The doctor finds what is there, says what is not, and changes nothing."""

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from anabranch.commands import doctor
from anabranch.commands.doctor import Check, check_broker, check_disk, check_packages, check_python, check_store
from common.items import Catalogue, Item
from common.manifests import Manifest
from server.registry import Registry
from server.store_info import StoreInfo

NAMES = ["python", "packages", "encoder", "device", "broker", "data", "disk", "store"]
KEYS = {"name", "ok", "found", "mend"}


@pytest.fixture
def program() -> typer.Typer:
    """Return a command line of this command alone."""
    app = typer.Typer()
    app.command()(doctor.doctor)
    return app


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return a store with one current version."""
    root = tmp_path / "store"
    registry = Registry.create(root, StoreInfo("minilm", "0" * 64, "toy", 0), Catalogue([Item("a", "A", "A")]))
    registry.publish({"one.bin": b"content"}, Manifest("adapter", "v1", (), 0, base_sha256="0" * 64))
    registry.point("current", "v1")
    return root


def _failed(check: Check, *words: str) -> None:
    assert not check.ok
    assert check.mend
    assert all(word in check.found for word in words), check.found


def test_json_is_one_object_with_every_check(program: typer.Typer, tmp_path: Path) -> None:
    done = CliRunner().invoke(program, ["--store", str(tmp_path / "none"), "--json"])
    checks = json.loads(done.stdout)["checks"]
    assert [check["name"] for check in checks] == NAMES
    assert all(set(check) == KEYS for check in checks)
    assert all(check["ok"] or check["mend"] for check in checks)
    assert done.exit_code == (0 if all(check["ok"] for check in checks) else 1)


def test_an_installed_machine_is_well(program: typer.Typer, tmp_path: Path) -> None:
    done = CliRunner().invoke(program, ["--store", str(tmp_path / "none")])
    assert done.exit_code == 0, done.stdout
    assert "NOT OK" not in done.stdout
    assert "to mend it" not in done.stdout
    assert not (tmp_path / "none").exists()


def test_a_damaged_store_ends_with_1_and_says_what_to_do(program: typer.Typer, store: Path) -> None:
    (store / "versions" / "v1" / "one.bin").write_bytes(b"Content")
    done = CliRunner().invoke(program, ["--store", str(store), "--json"])
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.exit_code == 1
    assert "one.bin" in found["store"]["found"]
    assert "roll back" in found["store"]["mend"]
    assert all(check["ok"] for name, check in found.items() if name != "store")


def test_the_table_has_a_column_for_the_mending_only_when_needed(program: typer.Typer, store: Path) -> None:
    (store / "store.json").write_text("{}")
    done = CliRunner().invoke(program, ["--store", str(store)], env={"COLUMNS": "200"})
    assert done.exit_code == 1
    assert "NOT OK" in done.stdout
    assert "to mend it" in done.stdout


def test_an_old_python_is_refused() -> None:
    _failed(check_python((3, 10, 14)), "3.10.14")
    assert check_python((3, 12, 1)).ok


def test_packages_out_of_range_and_missing_ones_are_named() -> None:
    wanted = ["numpy>=99", "no-such-package-anywhere", "msgspec>=0.20", "other>=9; extra == 'ray'"]
    _failed(check_packages(wanted), "numpy is ", "not >=99", "no-such-package-anywhere is missing")
    assert check_packages(wanted[2:]).found.startswith("1 package")


@pytest.mark.parametrize("binary", ["/no/such/file", shutil.which("false") or "false"])
def test_a_broker_that_cannot_run_is_found_out(binary: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALF_TANSU_BIN", binary)
    _failed(doctor.examined("broker", check_broker), "broker")


def test_the_broker_is_gone_afterwards() -> None:
    check = check_broker()
    assert check.ok
    host, _, port = check.found.partition(" answered on ")[2].partition(" ")[0].rpartition(":")
    with socket.socket() as probe:
        assert probe.connect_ex((host, int(port))) != 0


def test_too_little_space_is_said_where_it_is_missing(tmp_path: Path) -> None:
    _failed(check_disk(tmp_path / "a" / "b", least=1 << 62), "GB free", str(tmp_path))
    assert not (tmp_path / "a").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    _failed(check_disk(tmp_path), "cannot be written")


def test_a_store_is_looked_at(store: Path, tmp_path: Path) -> None:
    assert check_store(store) == Check("store", True, "1 version of toy, v1 is current and whole")
    assert check_store(tmp_path / "none").ok
    assert "memory://none/yet is no model store" in check_store("memory://none/yet").found
    assert "no model store" in check_store(tmp_path).found


def test_a_look_that_fails_hides_no_other() -> None:
    def look() -> Check:
        raise ImportError("libfoo.so: cannot open shared object file")

    _failed(doctor.examined("device", look), "libfoo.so")
