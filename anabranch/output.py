"""What a command prints: one JSON object or a table on stdout, everything else on stderr."""

import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from common.errors import AnabranchError
from common.progress import Progress

LogFormat = Literal["text", "json"]


def program() -> str:
    """Return what to type to run the program again: its name where the PATH finds it, else its path."""
    typed = Path(sys.argv[0])
    found = shutil.which(typed.name)
    if found is not None and Path(found).resolve() == typed.resolve():
        return typed.name
    return os.path.relpath(typed) if typed.is_absolute() and typed.is_relative_to(Path.cwd()) else str(typed)


_NOTES = logging.getLogger("anabranch.notes")


class _JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and what the record carries as `data`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        content: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            content["traceback"] = self.formatException(record.exc_info)
        data = getattr(record, "data", None)
        return json.dumps({**content, **(data if isinstance(data, dict) else {})}, default=str)


class Output:
    """Where one command's words go.

    Parameters
    ----------
    as_json
        Print one JSON object on stdout instead of tables.
    log_format
        How stderr is written: "text" for people, "json" with one object a line for a collector of logs.
    """

    def __init__(self, *, as_json: bool = False, log_format: LogFormat = "text") -> None:
        self.as_json, self.log_format = as_json, log_format
        self.stdout = Console(file=sys.stdout, highlight=False)
        self.stderr = Console(file=sys.stderr, highlight=False)
        handler: logging.Handler = RichHandler(console=self.stderr, show_path=False, rich_tracebacks=False)
        if log_format == "json":
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(_JsonLines())
            logging.getLogger("anabranch").setLevel(logging.INFO)
        logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=log_format == "json")
        # on a busy machine kafka-python warns of every task that took 0.1 s; nobody can act on it
        logging.getLogger("kafka.net.selector").setLevel(logging.ERROR)

    def note(self, text: str) -> None:
        """Print a line for people, on stderr."""
        if self.log_format == "json":
            _NOTES.info(text)
        else:
            self.stderr.print(text)

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Log an error of the block in the format of the logs, and end the program with its exit code."""
        try:
            yield
        except AnabranchError as error:
            if self.log_format == "text":
                raise
            _NOTES.error(str(error), extra={"data": {"error": type(error).__name__}})
            raise SystemExit(error.exit_code) from error

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
