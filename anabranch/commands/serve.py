"""`anabranch serve`: the query path over HTTP."""

from contextlib import ExitStack
from typing import Annotated

import typer

from anabranch.output import Output


def serve(
    store: Annotated[str, typer.Option(help="Folder of models to serve, or an address: s3://...")] = "anabranch-store",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port; 0 takes a free one.")] = 8000,
    reload_every: Annotated[
        float, typer.Option(min=0.05, max=3_600.0, help="Seconds between two looks for a new version.")
    ] = 2.0,
    device: Annotated[str, typer.Option(help="Where query texts are encoded: auto, cpu, cuda, mps.")] = "auto",
    allow_remote: Annotated[bool, typer.Option(help="Listen where other machines reach it, unauthenticated.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the address as one JSON object.")] = False,
) -> None:
    """Answer questions over HTTP, and take up new versions while answering.

    Without a model it answers 503 until one is published. Stop it with Ctrl-C.

    \b
    Example:
      anabranch serve --store anabranch-store --port 8000
      curl -s localhost:8000/v1/recommendations -H 'content-type: application/json' -d '{"query": "space adventure"}'
    """
    from server.serving.run import bind, checked_host, url_of

    out = Output(as_json=as_json)
    # the socket first: a port in use shows at once, not after the model is loaded
    with bind(checked_host(host, allow_remote=allow_remote), port) as listener:
        from anabranch.recommender import lazy_queries
        from common.errors import NoModel
        from server.serving.app import create_app
        from server.serving.reload import ReloadingSource
        from server.serving.run import pin_blas_threads, serve_until_stopped

        pin_blas_threads()
        source = ReloadingSource(store, reload_every)
        queries = lazy_queries(device)
        with ExitStack() as running:
            running.enter_context(source.polling())
            try:
                bundle = source.bundle()
            except NoModel as error:
                out.note(f"answering 503 until there is a model: {error}")
            else:
                queries.warm(bundle.model)
            url = url_of(listener)
            out.result({"url": url, "store": store}, lambda console: console.print(f"serving {store} on {url}"))
            serve_until_stopped(create_app(source, queries), listener)
    out.note("stopped")
