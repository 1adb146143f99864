"""`anabranch recommend`: one question, from a store or a running service."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from anabranch.output import Output
from common.errors import ServiceError, UsageError

TIMEOUT_SECONDS = 60.0
KEY_VARIABLE = "ANABRANCH_API_KEY"
StreamStoreOption = Annotated[
    Path | None,
    typer.Option(help="Folder of the store the click learner works in, where it is not --store, as with s3://..."),
]


def recommend(
    user: Annotated[str | None, typer.Option(help="A user's id.")] = None,
    query: Annotated[str | None, typer.Option(help="Text to be close to.")] = None,
    history: Annotated[str | None, typer.Option(help="Ids of liked items, oldest first, with commas between.")] = None,
    k: Annotated[int, typer.Option("-k", help="How many items, 1 to 500.")] = 10,
    include_seen: Annotated[bool, typer.Option(help="Recommend what was liked already, too.")] = False,
    explain: Annotated[bool, typer.Option(help="Say why; the weights add up to the score.")] = False,
    store: Annotated[str, typer.Option(help="Folder of models, or an address: s3://...")] = "anabranch-store",
    version: Annotated[str, typer.Option(help="Model version, or `current`.")] = "current",
    stream_store: StreamStoreOption = None,
    url: Annotated[
        str | None,
        typer.Option(help="Ask a running service instead of the store; its key is taken from ANABRANCH_API_KEY."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where the query is encoded: auto, cpu, cuda, mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Recommend for a user, a text, a history, or any of them together.

    \b
    Example:
      anabranch recommend --user 196 -k 5 --explain
      anabranch recommend --query "space adventure" --history 50,181
    """
    if user is None and query is None and history is None:
        raise UsageError("nothing to recommend for", expected="--user, --query or --history (or several)")
    if url is not None and version != "current":
        raise UsageError("--version together with --url", expected="one of them", mend="a service has one version")
    if url is not None and stream_store is not None:
        raise UsageError("--stream-store together with --url", expected="one of them", mend="a service has its own")
    items = [item_id.strip() for item_id in (history or "").split(",") if item_id.strip()]
    asked = {
        "user_id": user,
        "history": items,
        "query": query,
        "k": k,
        "exclude_seen": not include_seen,
        "explain": explain,
    }
    out = Output(as_json=as_json)
    payload = _from_service(url, asked) if url is not None else _from_store(store, version, stream_store, device, asked)
    out.result(payload, lambda console: _draw(console, payload))


def _from_store(
    store: str, version: str, stream_store: Path | None, device: str, asked: Mapping[str, Any]
) -> dict[str, Any]:
    from anabranch.recommender import Recommender
    from server.serving.recommend import Question, slate_payload

    # checked before anything is read, so a bad value costs no time
    question = Question(**{**asked, "history": tuple(asked["history"])})
    recommender = Recommender.load(store, version=version, device=device, stream_store=stream_store)
    slate = recommender.recommend(
        question.user_id, question.history, question.query, question.k, question.exclude_seen, question.explain
    )
    return slate_payload(slate, explain=question.explain)


def _from_service(url: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    import httpx

    try:
        response = httpx.post(
            f"{url.rstrip('/')}/v1/recommendations",
            json=dict(asked),
            timeout=TIMEOUT_SECONDS,
            # from the environment: an option would end in the shell's history and in the list of processes
            headers={"Authorization": f"Bearer {key}"} if (key := os.environ.get(KEY_VARIABLE)) else {},
        )
        body: dict[str, Any] = response.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ServiceError(
            f"no answer from {url}: {error}", expected="a running service", mend="anabranch serve"
        ) from error
    if response.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
        raise UsageError(f"{url} refused the question: {body.get('detail', body)}")
    if response.is_error:
        raise ServiceError(f"{url} answered {response.status_code}: {body.get('detail', body)}")
    return body


def _draw(console: Console, slate: Mapping[str, Any]) -> None:
    explained = any("reasons" in item for item in slate["items"])
    table = Table(title=f"model {slate['model_version']}", caption=_caption(slate), title_justify="left")
    table.add_column("#", justify="right")
    table.add_column("title", overflow="fold")
    table.add_column("item", overflow="fold")
    table.add_column("score", justify="right")
    if explained:
        table.add_column("why", overflow="fold")
    for item in slate["items"]:
        cells = [str(item["rank"]), escape(item["title"]), escape(item["item_id"]), f"{item['score']:.3f}"]
        if explained:
            cells.append("\n".join(_reason(reason) for reason in item["reasons"]))
        table.add_row(*cells)
    console.print(table)


def _reason(reason: Mapping[str, Any]) -> str:
    words = str(reason["text"])
    if reason["kind"] == "because-you-liked":
        members = sorted(reason["members"], key=lambda kind: -reason["members"][kind])
        words = f"you liked {words} ({', '.join(members)})"
    return f"{reason['weight']:+.2f} {escape(words)}"


def _caption(slate: Mapping[str, Any]) -> str | None:
    notes = []
    if not slate["items"]:
        notes.append("nothing is left to recommend")
    unknown = slate["ignored"].get("unknown_items", 0)
    if unknown:
        notes.append(f"{unknown} unknown item(s) of the history ignored")
    return "; ".join(notes) or None
