"""The processes of a service that has several: one reads the store, one the topic, the others answer.

Started as ``python -m anabranch.serving_process ROLE FD SOCKET``: the role is `LOADER`, `TAIL` or names one that
answers, FD is the inherited end of a pipe to the parent, SOCKET the inherited socket that those accept from.
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

from anabranch.serving import Serving, Shared, warming
from common.errors import AnabranchError, InvalidSetting
from common.priority import give_way
from server.serving.fair_accept import Tally
from server.serving.processes import ParentLink, Processes

log = logging.getLogger(__name__)
LOADER, TAIL, SERVER = "loader", "tail", "server-"
LOOK_S = 0.02
"""How often is looked whether the loader has looked at the store for the first time."""
GIVES_WAY = 10
"""The loader asks for a core politely: a version that is served a moment later is better than late answers."""
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
    shared
        What they share.
    """

    serving: Serving
    device: str
    shared: Shared

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
    """Serve with so many processes that answer, and those that read for them, until Ctrl-C or SIGTERM.

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
        metrics, shared = Path(folder) / "metrics", Shared(Path(folder))
        for each in (metrics, shared.bundle):
            each.mkdir(mode=0o700)
        Tally.new(shared.connections, count)
        settings = ProcessSettings(serving, device, shared)
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

        readers = [LOADER] if serving.broker is None else [LOADER, TAIL]
        roles = [*readers, *(f"{SERVER}{number}" for number in range(1, count + 1))]
        Processes(roles, start, settings.encode()).run(on_ready)


def _stopped(link: ParentLink) -> threading.Event:
    """Return what is set when this process is to end."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    link.watch(stop.set)
    return stop


def _load(settings: ProcessSettings, link: ParentLink) -> None:
    """Read the store whenever it changes, and write out what is served."""
    from server.serving.reload import ReloadingSource
    from server.serving.shared import BundleFolder

    serving, stop = settings.serving, _stopped(link)
    keep = BundleFolder(settings.shared.bundle).write
    source = ReloadingSource(
        serving.store, serving.reload_every, keep=keep, mapped=True, stream_store=serving.stream_store
    )
    with source.polling():
        settings.shared.looked.touch()
        give_way(GIVES_WAY)  # the processes that answer have a core first
        link.ready()
        stop.wait()


def _tail(settings: ProcessSettings, link: ParentLink) -> None:
    """Read the topic, and write out what users do."""
    from server.serving.shared import MappedSource

    stop, source = _stopped(link), MappedSource(settings.shared.bundle, settings.serving.store)
    _quieten_kafka()
    with source.polling():
        link.ready()
        # items are noted by their rows, and without any there is nothing to answer
        while not stop.is_set() and not source.has_bundle:
            stop.wait(LOOK_S)
        if stop.is_set():
            return
        with settings.serving.tail(source, settings.shared).following():
            stop.wait()


def _quieten_kafka() -> None:
    # the client's retries stay out of people's sight, as in the other commands
    logging.getLogger("kafka").setLevel(logging.CRITICAL)


def _answer(settings: ProcessSettings, link: ParentLink, listener: socket.socket, role: str) -> None:
    """Answer questions from what the loader wrote."""
    from anabranch.recommender import lazy_queries
    from server.serving.run import pin_blas_threads, serve_until_stopped

    pin_blas_threads()
    _quieten_kafka()
    link.watch(lambda: os.kill(os.getpid(), signal.SIGTERM))
    queries = lazy_queries(settings.device)
    while not settings.shared.looked.exists():
        time.sleep(LOOK_S)  # else it would say that it is ready while it has no model yet
    with settings.serving.running(queries, settings.shared, role) as (app, source), warming(queries, source):
        tally = Tally(settings.shared.connections, int(role.removeprefix(SERVER)) - 1)
        serve_until_stopped(app, listener, stopped_by=(signal.SIGTERM,), on_start=link.ready, tally=tally)


def main() -> None:
    """Run one process, to its end."""
    role, handle, sharing = sys.argv[1:]
    link = ParentLink(int(handle))
    try:
        settings = ProcessSettings.decode(link.settings)
        if role == LOADER:
            _load(settings, link)
        elif role == TAIL:
            _tail(settings, link)
        else:
            _answer(settings, link, socket.socket(fileno=int(sharing)), role)
    except AnabranchError as error:
        link.fail(str(error))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
