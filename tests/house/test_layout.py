"""The top level is fixed: it is also what Flower packs into an app."""

import subprocess
import tomllib

from packaging.requirements import Requirement

from tests.house.tree import PACKAGES, ROOT, modules

TOP = {
    ".ci", ".dockerignore", ".gitignore", "Dockerfile", "LICENSE", "Makefile", "README.md", "SECURITY.md", "anabranch",
    "benchmarks", "client", "common", "constraints.txt", "docker-compose.federation.yml", "docker-compose.yml", "docs",
    "pyproject.toml", "server", "stream", "tests",
}  # fmt: skip


def test_the_top_level_is_as_designed() -> None:
    # what is tracked: a file that a user left in the checkout breaks nothing
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {name.partition("/")[0] for name in listed.split("\0") if name} == TOP


def test_every_package_is_installed_and_typed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {module.path.parent.relative_to(ROOT).as_posix().replace("/", ".") for module in modules()}
    assert set(settings["packages"]) == folders
    assert all((ROOT / package / "py.typed").is_file() for package in PACKAGES)
    assert all((ROOT / name.replace(".", "/") / "__init__.py").is_file() for name in folders)


def test_the_licence_is_the_one_that_is_named() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "LICENSE").read_text()
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_every_dependency_is_pinned_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(text) for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]]
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    pins = dict(line.split("==") for line in lines if line)
    assert {requirement.name for requirement in wanted} <= set(pins)
    assert not [r.name for r in wanted if not r.specifier.contains(pins[r.name])]
