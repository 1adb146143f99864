"""`anabranch stream status`: how far a store's learner is, whether one worker learns or several do."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from anabranch.commands.stream_options import JsonFlag
from anabranch.output import Output

if TYPE_CHECKING:
    from stream.checkpoint import Checkpoint

_COUNTS = ("events", "learned", "duplicates_skipped", "dead_letters", "drift_alarms", "offsets", "topic_ids")
StoreOption = Annotated[Path, typer.Option(help="Folder of models and checkpoints.")]
STORE = Path("anabranch-store")


def status(*, store: StoreOption = STORE, as_json: JsonFlag = False) -> None:
    """Show the last checkpoint, or those of all partitions: events, offsets, age.

    \b
    Example:
      anabranch stream status --store anabranch-store
    """
    from common.errors import NoModel
    from stream.checkpoint import CheckpointStore
    from stream.partitions import PartitionStore
    from stream.snapshot import current_snapshot

    out = Output(as_json=as_json)
    partitions = PartitionStore(store)
    found = {number: partitions.newest(number, out.note) for number in partitions.numbers()}
    shared = {number: each for number, each in found.items() if each is not None}
    lone = None if shared else CheckpointStore(store).newest(out.note)
    payload: dict[str, Any] = {"store": str(store), "snapshot": current_snapshot(store)}
    if lone is not None:
        payload |= {"checkpoint": lone.sequence, **_told([lone])}
    elif shared:
        claims = {str(number): mark.claim for number, (mark, _) in shared.items()}
        payload |= {"claims": claims, **_told([checkpoint for _, checkpoint in shared.values()])}
    else:
        raise NoModel(f"no checkpoint in {store}", mend="learn something first: anabranch stream learn")
    out.result(payload, lambda console: _draw(console, payload))


def _told(checkpoints: "list[Checkpoint]") -> dict[str, Any]:
    """Return what checkpoints of different partitions say together; the oldest one's age is theirs."""
    from common.clock import wall_clock
    from stream.shared_items import summed

    details = checkpoints[0].details if len(checkpoints) == 1 else summed([each.details for each in checkpoints])
    return {
        "age_seconds": max(0, wall_clock() - min(each.created_at for each in checkpoints)) / 1000,
        "bytes": sum(each.size for each in checkpoints),
        **{name: details[name] for name in _COUNTS},
    }


def _draw(console: Console, told: dict[str, Any]) -> None:
    what = f"checkpoint {told['checkpoint']}" if "checkpoint" in told else f"{len(told['claims'])} partitions, shared"
    console.print(f"{what}, {told['age_seconds']:.0f} s old, {told['bytes'] / 1e6:.1f} MB")
    console.print(f"{told['events']} events: {told['learned']} learned, {told['dead_letters']} dead letters")
    for name, parts in told["offsets"].items():
        for part, offset in sorted(parts.items(), key=lambda each: int(each[0])):
            claimed = f", owner number {told['claims'][part]}" if part in told.get("claims", {}) else ""
            console.print(f"{name} partition {part}: next offset {offset}{claimed}")
