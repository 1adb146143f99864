"""The processes of a service that has several: one reads the store, the others answer.

Started as ``python -m anabranch.serving_process ROLE FD SOCKET``: the role is `LOADER` or names one that answers, FD is
the inherited end of a pipe to the parent, SOCKET the inherited socket that all of them accept from.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from anabranch.serving import Serving
from common.errors import AnabranchError, InvalidSetting, NoModel
from server.serving.processes import ParentLink, Processes
from server.serving.reload import ReloadingSource
from server.serving.shared import BundleFolder

log = logging.getLogger(__name__)
LOADER = "loader"
LOOKED, LOOK_S = "looked", 0.02
"""A file that is there once the loader has looked at the store for the first time, and how often it is looked for."""
METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client keeps its figures in files of this folder, which it adds up; it is read when it is imported."""


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """What every process of a service is told.

    Parameters
    ----------
    serving
        What the service is told.
    device
        Where query texts are encoded.
    folder
        Where the bundle lies that they share.
    """

    serving: Serving
    device: str
    folder: Path

    def encode(self) -> bytes:
        """Return the settings as JSON."""
        return msgspec.json.encode(asdict(self), enc_hook=str)

    @classmethod
    def decode(cls, raw: bytes) -> "ProcessSettings":
        """Return what `encode` wrote."""
        return msgspec.json.decode(raw, type=cls, dec_hook=_path)


def _path(wanted: type, value: Any) -> Any:
    if wanted is Path:
        return Path(value)
    raise NotImplementedError(wanted)  # how msgspec asks to be told that a type is not ours


def serve_with_processes(
    serving: Serving, device: str, count: int, listener: socket.socket, on_ready: Callable[[Mapping[str, int]], None]
) -> None:
    """Serve with so many processes that answer, and one that reads the store, until Ctrl-C or SIGTERM.

    Parameters
    ----------
    on_ready
        Given the process id of each, by role, once all are ready.

    Raises
    ------
    InvalidSetting
        Where processes cannot share a socket.
    ServiceError
        When one does not start.
    """
    if os.name != "posix":
        raise InvalidSetting(
            f"{count} processes on {sys.platform}", expected="1: here a socket cannot be handed to another process"
        )
    with tempfile.TemporaryDirectory(prefix="anabranch-serve-") as folder:
        metrics = Path(folder) / "metrics"
        bundle = Path(folder) / "bundle"
        for each in (metrics, bundle):
            each.mkdir(mode=0o700)
        settings = ProcessSettings(serving, device, bundle)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            METRICS_VARIABLE: str(metrics),
        }
        # each computes beside the others: more threads than cores only wait for one another
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))

        def start(role: str, link: int) -> "subprocess.Popen[bytes]":
            return subprocess.Popen(  # noqa: S603  our own module under our own interpreter
                [sys.executable, "-m", "anabranch.serving_process", role, str(link), str(listener.fileno())],
                env=environment,
                pass_fds=[link, listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is the parent's to handle
            )

        roles = [LOADER, *(f"server-{number}" for number in range(1, count + 1))]
        Processes(roles, start, settings.encode()).run(on_ready)


def _load(settings: ProcessSettings, link: ParentLink) -> None:
    """Read the store whenever it changes, and write out what is served."""
    serving, stop = settings.serving, threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    link.watch(stop.set)
    source = ReloadingSource(serving.store, serving.reload_every, keep=BundleFolder(settings.folder).write)
    with source.polling():
        (settings.folder.parent / LOOKED).touch()
        link.ready()
        stop.wait()


def _answer(settings: ProcessSettings, link: ParentLink, listener: socket.socket, role: str) -> None:
    """Answer questions from what the loader wrote."""
    from anabranch.recommender import lazy_queries
    from server.serving.run import pin_blas_threads, serve_until_stopped

    pin_blas_threads()
    # the client's retries stay out of people's sight, as in the other commands
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    link.watch(lambda: os.kill(os.getpid(), signal.SIGTERM))
    queries = lazy_queries(settings.device)
    while not (settings.folder.parent / LOOKED).exists():
        time.sleep(LOOK_S)  # else the encoder would be loaded by the first question that needs it
    with settings.serving.running(queries, settings.folder, role) as (app, source):
        try:
            queries.warm(source.bundle().model)
        except NoModel:
            pass  # it answers 503 until there is one
        except AnabranchError as error:
            # one that replaces another goes on with all other questions
            log.warning("questions with a text are refused: %s", error)
        serve_until_stopped(app, listener, stopped_by=(signal.SIGTERM,), on_start=link.ready)


def main() -> None:
    """Run one process, to its end."""
    role, handle, sharing = sys.argv[1:]
    link = ParentLink(int(handle))
    try:
        settings = ProcessSettings.decode(link.settings)
        if role == LOADER:
            _load(settings, link)
        else:
            _answer(settings, link, socket.socket(fileno=int(sharing)), role)
    except AnabranchError as error:
        link.fail(str(error))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
