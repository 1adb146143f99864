"""What a command prints: one JSON object or a table on stdout, everything else on stderr."""

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from common.progress import Progress


def program() -> str:
    """Return what to type to run the program again: its name where the PATH finds it, else its path."""
    typed = Path(sys.argv[0])
    found = shutil.which(typed.name)
    if found is not None and Path(found).resolve() == typed.resolve():
        return typed.name
    return os.path.relpath(typed) if typed.is_absolute() and typed.is_relative_to(Path.cwd()) else str(typed)


class Output:
    """Where one command's words go.

    Parameters
    ----------
    as_json
        Print one JSON object on stdout instead of tables.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.stdout = Console(file=sys.stdout, highlight=False)
        self.stderr = Console(file=sys.stderr, highlight=False)
        logging.basicConfig(
            level=logging.WARNING,
            format="%(message)s",
            handlers=[RichHandler(console=self.stderr, show_path=False, rich_tracebacks=False)],
        )
        # on a busy machine kafka-python warns of every task that took 0.1 s; nobody can act on it
        logging.getLogger("kafka.net.selector").setLevel(logging.ERROR)

    def note(self, text: str) -> None:
        """Print a line for people, on stderr."""
        self.stderr.print(text)

    def result(self, payload: Mapping[str, Any], table: Callable[[Console], None]) -> None:
        """Print the command's result: `payload` as JSON, or what `table` draws."""
        if self.as_json:
            sys.stdout.write(json.dumps(payload, allow_nan=False) + "\n")
            sys.stdout.flush()
        else:
            table(self.stdout)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Give a progress callback that draws one bar a stage on stderr; silent when it is no terminal."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        stages: dict[str, TaskID] = {}
        with Bars(*columns, console=self.stderr, disable=not sys.stderr.isatty()) as bars:

            def report(stage: str, done: int, total: int) -> None:
                if stage not in stages:
                    stages[stage] = bars.add_task(stage, total=total or None)
                bars.update(stages[stage], completed=done, total=total or None)

            yield report
