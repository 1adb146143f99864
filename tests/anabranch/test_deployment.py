"""Folders of a federation: certificates that hold, keys that are kept, scripts that Flower's own parsers accept."""

import json
import socket
import ssl
import stat
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from flwr.common.config import parse_config_args
from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode
from typer.testing import CliRunner

from anabranch.certificates import Authority, node_key, write_secret
from anabranch.cli import app
from anabranch.deployment import Link, write_superlink, write_supernode
from client.configuration import node_settings
from common.clock import wall_clock
from common.errors import InvalidSetting
from common.items import Catalogue, Item
from tests.house.tree import ROOT

ITEMS = Catalogue([Item("a", "Alpha", "alpha"), Item("b", "Beta", "beta")])
RUN = {"simulated": False, "clients": 3, "data": "synthetic", "epsilon": 8.0}
STUB = '#!/bin/sh\nfor each in "$@"; do printf "%s\\n" "$each"; done\nprintf "home %s\\n" "$FLWR_HOME" >&2\nenv >&2\n'


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put programs of Flower's names on the PATH that print what they are given."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("flwr", "flower-superlink", "flower-supernode"):
        (folder / name).write_text(STUB)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def run_script(path: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Return the arguments and the environment that a script hands to Flower's program."""
    done = subprocess.run([str(path), *arguments], capture_output=True, text=True, check=True, cwd="/", timeout=30)
    environment = dict(line.partition("=")[::2] for line in done.stderr.splitlines() if "=" in line)
    return done.stdout.splitlines(), environment


def superlink(folder: Path, *hosts: str) -> Path:
    write_superlink(folder, Link(hosts or ("federation.example.org",), 9091), ITEMS, RUN)
    return folder


# -- certificates --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Authority]]:
    """Listen with a certificate for one name and the loopback addresses, for as many handshakes as come."""
    folder, authority = tmp_path_factory.mktemp("tls"), Authority.new(wall_clock)
    certificate, key = authority.server(["federation.example.org"], wall_clock)
    (folder / "server.pem").write_bytes(certificate)
    write_secret(folder / "server.key", key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    plain, _ = listener.accept()
                except OSError:
                    return
                try:
                    context.wrap_socket(plain, server_side=True).close()
                except OSError:
                    plain.close()

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1], authority
        listener.shutdown(socket.SHUT_RDWR)


def shake(port: int, authority: Authority, name: str) -> None:
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # what newer Pythons ask for by default
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        context.wrap_socket(plain, server_hostname=name).close()


@pytest.mark.parametrize("name", ["federation.example.org", "localhost", "127.0.0.1"])
def test_a_client_that_trusts_the_authority_trusts_the_server(server: tuple[int, Authority], name: str) -> None:
    shake(*server, name)


def test_another_name_or_authority_is_refused(server: tuple[int, Authority]) -> None:
    port, authority = server
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake(port, authority, "elsewhere.example.org")
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        shake(port, Authority.new(wall_clock), "federation.example.org")


def test_a_certificate_ends(server: tuple[int, Authority], tmp_path: Path) -> None:
    past = Authority.new(lambda: wall_clock() - 400 * 86_400_000)
    (tmp_path / "ca.pem").write_bytes(past.pem)
    assert past.certificate.not_valid_after_utc < server[1].certificate.not_valid_before_utc


def test_a_host_must_be_one() -> None:
    with pytest.raises(InvalidSetting, match="a host name or an address"):
        Authority.new(wall_clock).server(["a" * 80], wall_clock)
    for hosts in ((), ("",)):
        with pytest.raises(InvalidSetting, match="without a host"):
            Link(hosts, 9091)
    with pytest.raises(InvalidSetting, match="port 70000"):
        Link(["a"], 70000)
    assert Link(["::1"], 9091).address == "[::1]:9091"


def test_a_nodes_key_is_one_that_flower_reads() -> None:
    private, public = node_key()
    key, other = load_ssh_private_key(private, None), load_ssh_public_key(public)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(other, ec.EllipticCurvePublicKey)
    assert key.public_key().public_numbers() == other.public_numbers()
    assert key.curve.name == "secp384r1"
    assert node_key()[0] != private


# -- folders -------------------------------------------------------------------------------------------------------


def test_keys_are_their_owners_and_are_not_replaced(tmp_path: Path) -> None:
    folder = superlink(tmp_path / "superlink")
    key = folder / "server.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = key.read_bytes()
    with pytest.raises(InvalidSetting, match=r"server\.key is there already.*it was left as it is"):
        superlink(folder)
    assert key.read_bytes() == before
    assert [path.name for path in folder.rglob("*.key")] == ["server.key"]  # the authority's is kept by nobody


def test_the_superlink_is_started_as_flower_accepts_it(tmp_path: Path, programs: Path) -> None:
    folder = superlink(tmp_path / "a folder")
    given, environment = run_script(folder / "start.sh")
    found = _parse_args_run_superlink().parse_args(given)
    assert (found.host, found.port, found.enable_supernode_auth, found.insecure) == ("0.0.0.0", 9091, True, False)  # noqa: S104
    assert (found.database, found.runtime_dependency_install) == ("state.db", False)
    assert all((folder / name).is_file() for name in (found.ssl_certfile, found.ssl_keyfile, found.ssl_ca_certfile))
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert environment["PWD"] == str(folder)


def test_the_run_says_only_what_the_app_knows(tmp_path: Path) -> None:
    run = tomllib.loads((superlink(tmp_path / "superlink") / "run.toml").read_text())
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert run == RUN
    assert run.keys() <= known.keys()


def test_flowers_command_line_finds_the_superlink_also_when_the_folder_moved(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = superlink(tmp_path / "first").rename(tmp_path / "moved here")
    given, environment = run_script(folder / "flwr.sh", "run", ".", "--run-config", "a b.toml")
    assert given == ["run", ".", "--run-config", "a b.toml"]
    config = Path(environment["FLWR_HOME"]) / "config.toml"
    link = tomllib.loads(config.read_text())["superlink"]
    assert link["default"] == "federation"
    assert link["federation"] == {
        "address": "federation.example.org:9091",
        "root-certificates": str(folder / "ca.pem"),
    }
    monkeypatch.setenv("SUPERLINK", "127.0.0.1:9091")
    run_script(folder / "flwr.sh", "list")
    assert tomllib.loads(config.read_text())["superlink"]["federation"]["address"] == "127.0.0.1:9091"


def test_a_supernode_is_started_as_flower_accepts_it(tmp_path: Path, programs: Path) -> None:
    folder = tmp_path / "a node"
    files = {key: str(folder / key) for key in ("interactions", "catalogue", "ledger", "cache")}
    write_supernode(folder, "h:9091", {"client": "n", "encoder": "e", **files}, authority=b"CA", port=9100, threads=2)
    given, environment = run_script(folder / "start.sh")
    found = _parse_args_run_supernode().parse_args(given)
    assert (found.superlink, found.insecure, found.port) == ("h:9091", False, 9100)
    assert (folder / found.root_certificates).read_bytes() == b"CA"
    assert stat.S_IMODE((folder / found.auth_supernode_private_key).stat().st_mode) == 0o600
    assert environment["OMP_NUM_THREADS"] == "2"
    config = node_settings(parse_config_args([found.node_config]), tmp_path)
    assert config == {"client": "n", "encoder": "e", **files}


# -- the command -----------------------------------------------------------------------------------------------------


def invoke(*words: str) -> dict[str, object]:
    from anabranch import cli

    if not app.registered_groups:
        cli._register()
    done = CliRunner().invoke(app, ["deploy", *words, "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_server_and_node_are_written_apart_and_fit_together(tmp_path: Path, programs: Path) -> None:
    data = "synthetic:users=20,items=30"
    server, node = tmp_path / "server", tmp_path / "node"
    made = invoke("superlink", str(server), "--host", "superlink", "--host", "10.0.0.7", "--data", data, "--nodes", "2")
    assert made["address"] == "superlink:9091"
    papers = ["--ca", str(server / "ca.pem"), "--catalogue", str(server / "catalogue.jsonl")]
    invoke("supernode", str(node), "--name", "north", "--superlink", "superlink:9091", *papers, "--max-epsilon", "4")
    config = node_settings({"config": str(node / "node.json")}, tmp_path)
    assert (config["client"], config["max-epsilon"]) == ("north", "4")
    assert "off" not in config["units"]
    assert "secret-seed" not in config
    assert Path(config["catalogue"]).read_bytes() == (server / "catalogue.jsonl").read_bytes()
    assert (node / "ca.pem").read_bytes() == (server / "ca.pem").read_bytes()
    assert tomllib.loads((server / "run.toml").read_text())["clients"] == 2


def test_a_node_of_no_name_or_without_papers_is_refused(tmp_path: Path) -> None:
    from anabranch import cli

    if not app.registered_groups:
        cli._register()
    words = ["deploy", "supernode", str(tmp_path / "n"), "--superlink", "h:1", "--catalogue", "x", "--ca", "y"]
    for name, reason in (("a b", "--name 'a b'"), ("a", "--ca y is no file")):
        done = CliRunner().invoke(app, [*words, "--name", name])
        assert reason in str(done.exception)
    assert not (tmp_path / "n").exists()


def test_a_rehearsal_holds_what_a_simulation_would_deal(tmp_path: Path) -> None:
    from anabranch.parts import Parts
    from common.datasets.files import read_interactions
    from common.datasets.registry import load_dataset

    data = "synthetic:users=20,items=30"
    made = invoke("rehearse", str(tmp_path / "r"), "--data", data, "--nodes", "3", "--port", "9200")
    dealt = Parts.of(load_dataset(data, seed=0, notice=lambda text: None), 0.0, 0).deal(3, 0)
    homes = [Path(str(home)) for home in made["nodes"]]  # type: ignore[attr-defined]  # a list of texts
    for home, users in zip(homes, dealt, strict=True):
        assert {event.user_id for event in read_interactions(home / "interactions.jsonl")} == set(users)
    ports = {
        line.split("--port ")[1].split()[0]
        for home in homes
        for line in (home / "start.sh").read_text().splitlines()
        if "--port" in line
    }
    assert len(ports | {"9200"}) == 4
