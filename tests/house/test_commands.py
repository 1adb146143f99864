"""Every command that a text names exists and parses: README, docs, examples of --help, and what errors advise."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.tree import (
    ROOT,
    command,
    leaves,
    make_targets,
    modules,
    refusal,
    shell_blocks,
    typed_commands,
)

README = ROOT / "README.md"
SECURITY = ROOT / "SECURITY.md"
DOCS = sorted(path for path in (ROOT / "docs").rglob("*.md"))
BENCHMARKS = ROOT / "benchmarks" / "README.md"


def _complaints(words: Iterator[list[str]]) -> list[str]:
    found = []
    for program, *arguments in words:
        if program == "make":
            targets = [word for word in arguments if not word.startswith("-") and "=" not in word]
            found += [f"make {target}: no such target" for target in targets if target not in make_targets()]
        else:
            reason = refusal(arguments)
            found += [f"anabranch {' '.join(arguments)}: {reason}"] if reason else []
    return found


def _typed_in(path: Path) -> Iterator[list[str]]:
    for block in shell_blocks(path.read_text("utf-8")):
        yield from typed_commands(block)


def test_there_is_a_readme() -> None:
    assert README.is_file()


@pytest.mark.parametrize(
    "path", [README, SECURITY, BENCHMARKS, *DOCS], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_every_command_of_a_document_parses(path: Path) -> None:
    assert not _complaints(_typed_in(path))


def test_the_readme_begins_with_the_two_commands_of_the_makefile() -> None:
    named = [words[1] for words in _typed_in(README) if words[0] == "make" and len(words) > 1]
    assert {"demo", "test"} <= set(named)
    assert set(named) <= make_targets()


def test_every_import_of_the_readme_works() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    imports = [
        ast.unparse(node)
        for block in blocks
        for node in ast.parse(re.sub(r"^>>> |^\.\.\. ", "", block, flags=re.MULTILINE)).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(imports)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", [path for path, _ in leaves()], ids=" ".join)
def test_help_holds_an_example_that_parses(path: tuple[str, ...]) -> None:
    found = dict(leaves())[path]
    text = (found.help or "").replace("\b", "")
    head, mark, example = text.partition("Example:")
    assert mark, "no line `Example:`"
    assert head.strip(), "nothing before the example"
    typed = list(typed_commands(example))
    mine = [words[1 : len(path) + 1] for words in typed]
    assert list(path) in mine, f"no example of {' '.join(path)}"
    assert not _complaints(iter(typed))


@pytest.mark.parametrize("path", [path for path, _ in leaves()], ids=" ".join)
def test_every_option_says_what_it_is(path: tuple[str, ...]) -> None:
    bare = [p.name for p in dict(leaves())[path].params if p.name != "help" and not getattr(p, "help", None)]
    assert not bare


def test_errors_advise_commands_that_exist() -> None:
    known = {path[: length + 1] for path, _ in leaves() for length in range(len(path))}
    groups = {path[:1] for path, _ in leaves() if len(path) > 1}
    unknown = []
    for module in modules():
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.keyword) or node.arg != "mend":
                continue
            text = "".join(str(c.value) for c in ast.walk(node.value) if isinstance(c, ast.Constant))
            for first, second in re.findall(r"\banabranch ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?", text):
                words = (first, second) if (first,) in groups and second else (first,)
                if words not in known:
                    unknown.append(f"{module.name}:{node.value.lineno} anabranch {' '.join(words)}")
    assert not unknown


def test_the_parser_finds_commands_in_shell_text() -> None:
    lines = [
        "$ make demo PYTHON=python3.12",
        "X=1 anabranch data list --json | head -1",
        "# anabranch nothing",
        ".venv/bin/anabranch serve &",
    ]
    assert list(typed_commands("\n".join(lines))) == [
        ["make", "demo", "PYTHON=python3.12"],
        ["anabranch", "data", "list", "--json"],
        ["anabranch", "serve"],
    ]


@pytest.mark.parametrize("words", [["nonsense"], ["serve", "--nonsense"], ["model", "nonsense"], ["serve", "extra"]])
def test_the_check_refuses_what_the_program_refuses(words: list[str]) -> None:
    assert refusal(words)


def test_help_needs_no_heavy_library() -> None:
    heavy = ["torch", "transformers", "flwr", "opacus", "numba", "river", "kafka", "fastapi", "numpy"]
    script = (
        "import json, sys\nfrom anabranch import cli\nsys.argv = ['anabranch', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    code = end.code\n"
        f"sys.stderr.write(json.dumps([code, sorted(set({heavy}) & set(sys.modules))]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    code, loaded = json.loads(done.stderr)
    assert code in (0, None)
    assert loaded in ([], ["numpy"])
    assert "Usage" in done.stdout


def test_the_commands_are_the_designed_ones() -> None:
    designed = {"demo", "data", "simulate", "broker", "stream", "serve", "recommend", "model", "ledger", "evaluate"}
    designed |= {"doctor"}
    names = set(getattr(command(), "commands", {}))
    assert designed <= names
