"""`anabranch serve`: the query path over HTTP."""

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anabranch.commands.recommend import StreamStoreOption
from anabranch.commands.stream_options import TOPIC, ClientOption, SecurityOption, TopicOption, quieten_kafka
from anabranch.output import Output

if TYPE_CHECKING:
    from anabranch.serving import Serving

SLOW_S = 2.0
"""A start that takes longer says what it waits for."""
KeysOption = Annotated[
    Path | None, typer.Option("--keys", help="File of API keys (anabranch keys new); without it none are asked for.")
]
RateOption = Annotated[float, typer.Option(min=0, help="Requests a second of each key; 0 takes all.")]
BurstOption = Annotated[int, typer.Option(min=1, help="Requests of a key in one go, where --rate is given.")]
TimeoutOption = Annotated[float, typer.Option(min=0.01, max=3_600, help="Seconds after which a request gets 503.")]
OriginOption = Annotated[
    list[str], typer.Option("--cors-origin", help="Origin whose pages may ask from a browser; repeatable.")
]
SlateOption = Annotated[
    Path | None, typer.Option("--slate-log", help="Folder for one JSON line an answered slate; it names users.")
]
ExploreOption = Annotated[
    float,
    typer.Option(min=0, max=1, help="How often a slot shows another item in question; it is logged how probable."),
]
ProcessesOption = Annotated[
    int, typer.Option(min=1, max=256, help="Processes that answer; more than one share the model in memory.")
]
BrokerOption = Annotated[
    str | None,
    typer.Option("--bootstrap-servers", help="Kafka's HOST:PORT: clicks count at once, and /v1/events takes events."),
]


def serve(
    *,
    store: Annotated[str, typer.Option(help="Folder of models to serve, or an address: s3://...")] = "anabranch-store",
    stream_store: StreamStoreOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on; other than loopback needs --keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port; 0 takes a free one.")] = 8000,
    reload_every: Annotated[
        float, typer.Option(min=0.05, max=3_600.0, help="Seconds between two looks for a new version.")
    ] = 2.0,
    device: Annotated[str, typer.Option(help="Where query texts are encoded: auto, cpu, cuda, mps.")] = "auto",
    servers: BrokerOption = None,
    topic: TopicOption = TOPIC,
    security: SecurityOption = None,
    client: ClientOption = "kafka-python",
    keys: KeysOption = None,
    rate: RateOption = 0.0,
    burst: BurstOption = 100,
    timeout: TimeoutOption = 30.0,
    cors_origin: OriginOption = [],  # noqa: B006 - typer's way to give a list a default; it is only read
    slate_log: SlateOption = None,
    explore: ExploreOption = 0.0,
    processes: ProcessesOption = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the address as one JSON object.")] = False,
) -> None:
    """Answer questions over HTTP, and take up new versions while answering.

    Without a model it answers 503 until one is published. Stop it with Ctrl-C.

    \b
    Example:
      anabranch serve --store anabranch-store --port 8000
      curl -s localhost:8000/v1/recommendations -H 'content-type: application/json' -d '{"query": "space adventure"}'
    """
    from server.serving.limits import Limits
    from server.serving.listening import bind, checked_host, url_of

    out = Output(as_json=as_json)
    limits = Limits(timeout_s=timeout, rate=rate, burst=burst)
    # the socket first: a port in use shows at once, not after the model is loaded
    with bind(checked_host(host, with_keys=keys is not None), port) as listener, _said_when_slow(out) as slow:
        from anabranch.serving import Broker, Serving

        url = url_of(listener)

        def tell(running_processes: Mapping[str, int]) -> None:
            slow.cancel()
            answer = {"url": url, "store": store, "processes": dict(running_processes)}
            out.result(answer, lambda console: console.print(f"serving {store} on {url}"))

        serving = Serving(
            store=store,
            stream_store=stream_store,
            reload_every=reload_every,
            limits=limits,
            keys=keys,
            origins=tuple(cors_origin),
            slate_log=slate_log,
            explore=explore,
            broker=None if servers is None else Broker(servers, topic, security, client),
        )
        if processes > 1:
            from anabranch.serving_process import serve_with_processes

            serve_with_processes(serving, device, processes, listener, tell)
        else:
            _serve_here(serving, device, listener, out, tell)
    out.note("stopped")


@contextmanager
def _said_when_slow(out: Output) -> Iterator[threading.Timer]:
    """Say what is being waited for, unless the timer is cancelled before."""
    said = (
        "starting: the store is read and checked; the first start after an installation compiles too, some 20 seconds"
    )
    timer = threading.Timer(SLOW_S, out.note, (said,))
    timer.daemon = True
    timer.start()
    try:
        yield timer
    finally:
        timer.cancel()


def _serve_here(
    serving: "Serving", device: str, listener: socket.socket, out: Output, tell: Callable[[Mapping[str, int]], None]
) -> None:
    """Answer from this process."""
    from anabranch.recommender import lazy_queries
    from anabranch.serving import warming
    from common.errors import NoModel
    from server.serving.run import pin_blas_threads, serve_until_stopped

    pin_blas_threads()
    quieten_kafka()
    queries = lazy_queries(device)
    with serving.running(queries) as (app, source):
        try:
            source.bundle()
        except NoModel as error:
            out.note(f"answering 503 until there is a model: {error}")
        with warming(queries, source):
            tell({"server": os.getpid()})
            serve_until_stopped(app, listener)
