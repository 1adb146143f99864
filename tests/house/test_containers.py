"""The compose file and the Dockerfile say what is there."""

import fnmatch
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.house.tree import ROOT, refusal

DOCKERFILE = ROOT / "Dockerfile"
COMPOSE = ROOT / "docker-compose.yml"
FEDERATION = ROOT / "docker-compose.federation.yml"
_INSTRUCTIONS = frozenset(
    {"ARG", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "LABEL", "RUN", "USER", "VOLUME", "WORKDIR"}
)


def _instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def _compose(path: Path = COMPOSE) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def _services(path: Path = COMPOSE) -> dict[str, dict[str, Any]]:
    services: dict[str, dict[str, Any]] = _compose(path)["services"]
    return services


BOTH = pytest.mark.parametrize("path", [COMPOSE, FEDERATION], ids=lambda path: path.name)


def test_the_dockerfile_is_made_of_known_instructions() -> None:
    assert {name for name, _ in _instructions()} <= _INSTRUCTIONS


def test_the_image_is_built_in_stages_and_runs_as_nobody_special() -> None:
    names = [name for name, _ in _instructions()]
    last = len(names) - 1 - names[::-1].index("FROM")
    final = dict(_instructions()[last:])
    assert names.count("FROM") >= 2
    assert final["USER"].split(":")[0] not in {"root", "0"}
    assert final["ENTRYPOINT"] == '["anabranch"]'


def test_the_image_starts_from_pinned_bases() -> None:
    bases = [text.split()[0] for name, text in _instructions() if name == "FROM"]
    stages = {text.split()[-1] for name, text in _instructions() if name == "FROM"}
    assert all(re.search(r":\d", base) or base in stages for base in bases)


def test_what_the_image_copies_is_there_and_not_ignored() -> None:
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    for name, text in _instructions():
        words = [word for word in text.split() if not word.startswith("--")]
        if name != "COPY" or "--from=" in text:
            continue
        for source in words[:-1]:
            assert (ROOT / source).exists(), source
            assert not any(fnmatch.fnmatch(source, pattern.lstrip("/")) for pattern in patterns), source


@pytest.mark.parametrize("name", [".git", ".venv", "anabranch-store"])
def test_what_is_large_or_private_stays_out_of_the_build(name: str) -> None:
    assert name in (ROOT / ".dockerignore").read_text().split()


@BOTH
def test_every_service_is_reached_from_this_machine_alone(path: Path) -> None:
    ports = [port for service in _services(path).values() for port in service.get("ports", [])]
    assert ports
    assert all(str(port).startswith("127.0.0.1:") for port in ports)


@BOTH
def test_every_service_that_stays_says_whether_it_is_well(path: Path) -> None:
    staying = [service for service in _services(path).values() if service["restart"] != "no"]
    assert len(staying) >= 3
    assert all("test" in service["healthcheck"] for service in staying)


@BOTH
def test_waiting_is_for_services_that_exist(path: Path) -> None:
    services = _services(path)
    for service in services.values():
        for other, how in service.get("depends_on", {}).items():
            assert other in services
            ends = services[other]["restart"] == "no"
            assert how["condition"] == ("service_completed_successfully" if ends else "service_healthy")


def test_every_volume_is_declared() -> None:
    declared = set(_compose()["volumes"])
    used = {text.split(":")[0] for service in _services().values() for text in service.get("volumes", [])}
    assert used == declared


def test_images_of_others_are_pinned() -> None:
    images = [service["image"] for service in _services().values() if "build" not in service]
    assert images
    assert all(re.search(r":\d+\.\d+", image) for image in images)


@pytest.mark.parametrize("name", sorted(n for n, service in _services().items() if "build" in service))
def test_every_command_parses(name: str) -> None:
    assert refusal([str(word) for word in _services()[name]["command"]]) is None


def test_every_node_of_the_federation_has_a_folder_of_its_own_and_no_other() -> None:
    services = _services(FEDERATION)
    folders = [text for service in services.values() for text in service["volumes"]]
    assert len(services) == len(set(folders)) == 4
    assert all(re.fullmatch(r"\./federation/[a-z-]+:/data", text) for text in folders)
    assert [name for name, service in services.items() if "ports" in service] == ["superlink"]


def test_the_federation_starts_by_the_scripts_that_deploy_writes() -> None:
    from anabranch.commands.deploy import PORT
    from anabranch.deployment import CA, NODE_PORT

    services = _services(FEDERATION)
    assert all(service["entrypoint"] == ["sh", "/data/start.sh"] for service in services.values())
    checks = {name: service["healthcheck"]["test"][-1] for name, service in services.items()}
    assert f"https://127.0.0.1:{PORT}/health" in checks["superlink"]
    assert f"/data/{CA}" in checks["superlink"]
    assert all(f":{NODE_PORT}/health" in check for name, check in checks.items() if name != "superlink")
    for check in checks.values():
        compile(check, "healthcheck", "exec")


@BOTH
def test_compose_itself_accepts_the_file(path: Path) -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not installed")
    done = subprocess.run(
        [docker, "compose", "-f", str(path), "config", "--quiet"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
