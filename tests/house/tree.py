"""The source tree as the house tests read it: files, syntax trees, and the commands that texts name."""

import ast
import fnmatch
import functools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import typer.main

from anabranch import cli

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("anabranch", "client", "common", "server", "stream")
_OPERATORS = frozenset({"|", "||", "&&", ";", "&", ">", ">>", "<", "2>", "(", ")"})
_FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)
_SHELL = frozenset({"", "sh", "bash", "shell", "console"})


@dataclass(frozen=True)
class Module:
    """One Python file of a package."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def name(self) -> str:
        """Its path from the root, for messages."""
        return self.path.relative_to(ROOT).as_posix()


@functools.cache
def modules() -> tuple[Module, ...]:
    """Return every Python file of the packages."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            text = path.read_text("utf-8")
            found.append(Module(path, text, ast.parse(text, str(path))))
    return tuple(found)


def ignored(name: str) -> bool:
    """Tell whether .gitignore leaves a top-level name out."""
    patterns = [line.strip().strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line.strip()]
    return name == ".git" or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def files(*suffixes: str) -> Iterator[Path]:
    """Yield the files with one of the suffixes, in every folder that is not ignored."""
    for top in sorted(ROOT.iterdir()):
        if ignored(top.name):
            continue
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.is_file() and path.suffix in suffixes and not any(ignored(part) for part in path.parts):
                yield path


def make_targets() -> frozenset[str]:
    """Return the Makefile's targets for people."""
    return frozenset(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@functools.cache
def command() -> click.Command:
    """Return the whole command line."""
    if not cli.app.registered_commands:
        cli._register()
    return typer.main.get_command(cli.app)


def leaves(
    root: click.Command | None = None, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command that does something, with the words that lead to it."""
    root = command() if root is None else root
    if not isinstance(root, click.Group):
        yield path, root
        return
    for name, child in sorted(root.commands.items()):
        yield from leaves(child, (*path, name))


def shell_blocks(markdown: str) -> Iterator[str]:
    """Yield the fenced blocks that a reader would type into a shell."""
    for language, body in _FENCE.findall(markdown):
        if language.lower() in _SHELL:
            yield body


def typed_commands(shell: str) -> Iterator[list[str]]:
    """Yield the words of each `make` and `anabranch` command in shell text, pipes and redirections cut off."""
    for line in shell.replace("\\\n", " ").splitlines():
        stripped = line.strip().removeprefix("$ ").removeprefix("%% ")
        if not re.match(r"([A-Z_]+=\S*\s+)*(make|\S*anabranch)(\s|$)", stripped):
            continue
        words: list[str] = []
        lexer = shlex.shlex(stripped, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        for word in [*lexer, ";"]:
            if word in _OPERATORS:
                if words and (words[0] == "make" or words[0].rpartition("/")[2] == "anabranch"):
                    yield [words[0].rpartition("/")[2], *words[1:]]
                words = []
            elif words or not re.fullmatch(r"[A-Z_]+=.*", word):
                words.append(word)


def refusal(arguments: list[str]) -> str | None:
    """Return why the command line would refuse these arguments, or None; nothing is run.

    A file that does not exist here is no reason: examples name the reader's files.
    """
    try:
        _descend(command(), "anabranch", arguments)
    except click.exceptions.Exit:
        return None
    except click.UsageError as error:
        return None if "does not exist" in error.message else error.message
    return None


def _descend(at: click.Command, name: str, arguments: list[str], parent: click.Context | None = None) -> None:
    if not isinstance(at, click.Group):
        at.make_context(name, list(arguments), parent=parent)
        return
    if not arguments:
        return
    if arguments[0].startswith("-"):
        at.make_context(name, list(arguments), parent=parent)
        return
    if arguments[0] not in at.commands:
        raise click.UsageError(f"no command {arguments[0]!r} in {name!r}")
    context = click.Context(at, parent=parent, info_name=name)
    _descend(at.commands[arguments[0]], arguments[0], arguments[1:], context)
