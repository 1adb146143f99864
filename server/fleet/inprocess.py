"""A Flower Grid on one machine: real ClientApp, real Messages, worker processes, no Ray.

Workers keep the encoder and map the cache, so they share the frozen backbone's hidden states through the page cache.
A worker that dies is replaced and its message sent once more; if that fails too, the node's reply is an error.
"""

import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from types import TracebackType

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.serde import message_from_proto, recorddict_to_proto
from flwr.common.serde_utils import metadata_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from server.fleet.wire import Task, encode_task

RUN_ID = 1
SERVER_NODE = 1
"""Flower's id of the server side; nodes count from `FIRST_NODE`."""
FIRST_NODE = 2
STOP_S = 5.0
WAIT_S = 0.25
QUICK_S = 0.02
"""A worker with jobs as short as this is handed one ahead, or it would wait as long as it works."""
READY_BYTES = 32_768
"""The longest task to be handed ahead: it lies in the socket, which must take it without anybody reading."""
KEPT = 8
"""Small records that are kept as they were written out."""
_Record = ArrayRecord | ConfigRecord | MetricRecord


@dataclass(slots=True)
class _Job:
    """A message on its way; what it holds is written out when a worker is free, so thousands may wait."""

    message: Message
    retried: bool = False

    @property
    def expires_at(self) -> float:
        """Seconds since the epoch after which Flower takes no reply."""
        return self.message.metadata.created_at + self.message.metadata.ttl


@dataclass(slots=True)
class _Worker:
    """A worker process and what it works on."""

    process: subprocess.Popen[bytes]
    link: Connection
    jobs: deque[_Job] = field(default_factory=deque)
    """What it works on, and then the one that lies ready for it."""
    arrays: "_Arrays | None" = None
    """The array records that it holds."""
    began: float = 0.0
    """Monotonic seconds when it took up what it works on."""
    quick: bool = False
    """Whether its last job took less than `QUICK_S`."""
    has_answered: bool = False
    """Whether it has done a job at all."""


@dataclass(frozen=True, slots=True)
class _Arrays:
    """The array records of a message, written out once for all messages that hold the same ones."""

    records: Mapping[str, ArrayRecord]
    raw: bytes

    def are_of(self, message: Message) -> bool:
        """Tell whether a message holds these very records."""
        others = dict(message.content.array_records)
        return others.keys() == self.records.keys() and all(others[name] is self.records[name] for name in others)


class Written:
    """The last few records as they were written out: most nodes of a round are asked the same, by the same record."""

    def __init__(self) -> None:
        self._kept: deque[tuple[str, _Record, bytes]] = deque(maxlen=KEPT)

    def __call__(self, name: str, record: _Record) -> bytes:
        """Return a RecordDict of one record in protocol buffers; put one after another they are one RecordDict."""
        for kept_name, kept, known in self._kept:
            if kept is record and kept_name == name:
                return known
        raw: bytes = recorddict_to_proto(RecordDict({name: record})).SerializeToString()
        self._kept.append((name, record, raw))
        return raw


class InProcessGrid(Grid):
    """Runs a ClientApp for many nodes in a few worker processes.

    Parameters
    ----------
    client_app
        Reference "module:name"; each worker loads it.
    node_configs
        One configuration a node; node `FIRST_NODE + i` has ``node_configs[i]``.
    workers
        Processes; at most one message each at a time.
    threads
        Threads a worker may compute with.
    costs
        How long each node's work takes, in any unit: of the messages pushed together the dearest go first, so that no
        worker is left with a long one at the end. None: in the order of the nodes.
    modules
        Loaded by each worker when it starts, where the app itself would load them with its first message.
    """

    def __init__(
        self,
        client_app: str,
        node_configs: Sequence[Mapping[str, str]],
        *,
        workers: int,
        threads: int = 1,
        costs: Sequence[float] | None = None,
        modules: Sequence[str] = (),
    ) -> None:
        self._client_app = client_app
        self._configs = {FIRST_NODE + i: dict(config) for i, config in enumerate(node_configs)}
        self._costs = dict(zip(self._configs, costs, strict=True)) if costs is not None else {}
        self._threads, self._modules = threads, tuple(modules)
        self._queue: deque[_Job] = deque()
        self._done: dict[str, Message] = {}
        self._count = 0
        self._arrays, self._small = _Arrays({}, b""), Written()
        # Flower's Message reads the identity of its process; under Flower's own runtimes they set it
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = RUN_ID, 1, SERVER_NODE
        self._workers = [self._start() for _ in range(min(workers, len(self._configs)))]

    def __enter__(self) -> "InProcessGrid":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up on the workers and wait until they are gone."""
        for worker in self._workers:
            worker.link.close()
        for worker in self._workers:
            if worker.jobs:
                worker.process.kill()
            _end(worker.process)
        self._workers.clear()

    # -- Flower's Grid -------------------------------------------------------------------------------------------

    def set_run(self, run: Run) -> None:
        """Do nothing: this grid has one run."""

    @property
    def run(self) -> Run:
        """The one run."""
        return Run.create_empty(RUN_ID)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message; Flower now prefers ``Message(...)`` itself."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes."""
        return list(self._configs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages, the dearest first, and return their ids."""
        jobs = []
        for message in messages:
            self._count += 1
            message.metadata.__dict__["_message_id"] = f"m{self._count}"  # as Flower's own grids do
            jobs.append(_Job(message))
        # the sort is stable: equals stay in the order in which they came
        self._queue += sorted(jobs, key=lambda job: -self._costs.get(job.message.metadata.dst_node_id, 0.0))
        self._dispatch()
        return [job.message.metadata.message_id for job in jobs]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there, waiting a little when there is none."""
        wanted = set(message_ids)
        if wanted.isdisjoint(self._done):
            self._collect(WAIT_S)
        return [self._done.pop(message_id) for message_id in list(self._done) if message_id in wanted]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages and pull until all replies are there or the time is up."""
        waiting = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (deadline is None or time.monotonic() < deadline):
            arrived = list(self.pull_messages(sorted(waiting)))
            waiting -= {message.metadata.reply_to_message_id for message in arrived}
            replies += arrived
        return replies

    # -- workers -------------------------------------------------------------------------------------------------

    def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(self._threads),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
        }
        command = [sys.executable, "-m", "server.fleet.worker", self._client_app, str(theirs.fileno()), *self._modules]
        with theirs:
            process = subprocess.Popen(  # noqa: S603  our own module under our own interpreter
                command,
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is the parent's to handle
            )
        return _Worker(process, Connection(ours.detach()))

    def _dispatch(self) -> None:
        for worker in self._workers:
            if not worker.jobs and self._queue:
                worker.began = time.monotonic()
                self._hand(worker, self._queue.popleft())
        for worker in self._workers:
            # no more than the others leave: who is slower than it was must not keep a job from them
            if worker.quick and len(worker.jobs) == 1 and len(self._queue) >= len(self._workers):
                self._hand_ahead(worker)

    def _hand(self, worker: _Worker, job: _Job) -> None:
        worker.jobs.append(job)
        try:
            worker.link.send_bytes(self._written(worker, job.message))
        except (BrokenPipeError, ConnectionResetError):
            # one that had nothing to do since it answered, and was gone by now, did not die of this job
            self._replace(worker, blames_job=len(worker.jobs) > 1 or not worker.has_answered)

    def _hand_ahead(self, worker: _Worker) -> None:
        """Hand a busy worker its next job if it is small: a long one could fill the socket, and all would wait."""
        message = self._queue[0].message
        if worker.arrays is self._arrays and self._arrays.are_of(message):
            if len(self._small_of(message)) <= READY_BYTES:
                self._hand(worker, self._queue.popleft())

    def _small_of(self, message: Message) -> bytes:
        """Return all records of a message but its arrays, written out."""
        others = [(name, record) for name, record in message.content.items() if name not in self._arrays.records]
        return b"".join(self._small(name, record) for name, record in others)

    def _written(self, worker: _Worker, message: Message) -> bytes:
        """Return a task for a worker, with the arrays unless it holds them."""
        if not self._arrays.are_of(message):
            records = dict(message.content.array_records)
            self._arrays = _Arrays(records, recorddict_to_proto(RecordDict({**records})).SerializeToString())
        known = worker.arrays is self._arrays
        worker.arrays = self._arrays
        small = ProtoRecordDict.FromString(self._small_of(message))
        proto = ProtoMessage(metadata=metadata_to_proto(message.metadata), content=small)
        config = self._configs[message.metadata.dst_node_id]
        return encode_task(Task(proto.SerializeToString(), config, None if known else self._arrays.raw))

    def _collect(self, timeout_s: float) -> None:
        self._give_up()
        self._dispatch()
        busy = {worker.link: worker for worker in self._workers if worker.jobs}
        answers: list[tuple[_Job, bytes]] = []
        for link in wait(list(busy), timeout_s):
            assert isinstance(link, Connection)  # noqa: S101  wait returns what it was given
            worker = busy[link]
            try:
                raw = link.recv_bytes()
            except (EOFError, OSError):  # OSError too: it may have died in the middle of an answer
                self._replace(worker)
                continue
            answers.append((worker.jobs.popleft(), raw))
            now = time.monotonic()
            worker.quick, worker.began, worker.has_answered = now - worker.began < QUICK_S, now, True
        self._dispatch()  # first of all, so that nobody waits while answers are read
        for job, raw in answers:
            self._done[job.message.metadata.message_id] = message_from_proto(ProtoMessage.FromString(raw))

    def _give_up(self) -> None:
        """End what nobody waits for any more: a worker that hangs would be missing from all later rounds."""
        now = time.time()
        while self._queue and self._queue[0].expires_at < now:
            job = self._queue.popleft()
            self._done[job.message.metadata.message_id] = _error_reply(job, "expired before a worker was free")
        for worker in self._workers:
            if worker.jobs and worker.jobs[0].expires_at < now:
                worker.jobs[0].retried = True
                worker.process.kill()

    def _replace(self, worker: _Worker, *, blames_job: bool = True) -> None:
        """Start another process for one that died; its job has one more chance, or as many where it had no part."""
        worker.link.close()
        status = _end(worker.process)
        self._workers[self._workers.index(worker)] = self._start()
        job, *ready = worker.jobs
        self._queue.extendleft(reversed(ready))  # they had not begun
        if job.retried and blames_job:
            reason = f"the worker process died twice (status {status})"
            self._done[job.message.metadata.message_id] = _error_reply(job, reason)
            return
        job.retried |= blames_job
        self._queue.appendleft(job)


def _end(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process that was hung up on, not for ever, and return its status."""
    try:
        return process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _error_reply(job: _Job, reason: str) -> Message:
    return Message(Error(1, reason), reply_to=job.message)
