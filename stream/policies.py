"""What a worker does when the topic is another one, or the broker no longer has the next record: by its settings."""

from collections.abc import Mapping

from common.errors import CheckpointMismatch, OffsetLost
from stream.settings import WorkerSettings
from stream.source import TopicInfo


def another_topic(settings: WorkerSettings, address: str, info: TopicInfo, known: str) -> str:
    """Return what to tell people of a topic that is not the one that was learned, if the worker may go on with it.

    Raises
    ------
    CheckpointMismatch
        When it may not.
    """
    if settings.on_new_topic == "fail":
        raise CheckpointMismatch(
            f"topic {info.name!r} at {address} has identity {info.identity or 'unknown'}",
            expected=f"{known or 'unknown'}, which the checkpoint was made from",
            consequence="its stored offsets mean nothing here; what was read since then is not stored",
            mend="--on-new-topic continue keeps what was learned and reads the new topic from its beginning",
        )
    return (
        f"topic {info.name!r} is a new one (identity {info.identity or 'unknown'}, was {known or 'unknown'}):"
        " what was learned stays, the topic is read from its beginning"
    )


def resumed(
    settings: WorkerSettings, error: OffsetLost, bounds: Mapping[int, tuple[int, int]], ids_each: int
) -> tuple[dict[int, int], str]:
    """Return where each partition whose next record is lost is read on, and what to tell people.

    A log that was cut is read again from the cut where that is known, else only as far as ids tell repeats.

    Parameters
    ----------
    settings
        Of the worker.
    error
        What is lost.
    bounds
        Oldest offset and end of each such partition.
    ids_each
        How many event ids are remembered for each partition.

    Raises
    ------
    OffsetLost
        When the worker may not go on.
    """
    shown = ", ".join(
        f"partition {part} offset {offset} (it has {bounds[part][0]} to {bounds[part][1]}"
        f"{_anew(error, part, *bounds[part])})"
        for part, offset in sorted(error.positions.items())
    )
    if settings.on_lost_offset == "fail":
        cut = any(offset >= bounds[part][0] for part, offset in error.positions.items())
        raise OffsetLost(
            f"the broker no longer has {settings.topic}: {shown}",
            positions=error.positions,
            cut=error.cut,
            consequence=f"{'the log was cut; ' if cut else ''}nothing further was learned",
            mend="--on-lost-offset earliest goes on with the oldest record it has, latest with the next new one",
        ) from error
    targets = {}
    for part, wanted in sorted(error.positions.items()):
        begin, end = bounds[part]
        cut_at = error.cut.get(part)
        if cut_at is not None:
            earliest = max(begin, cut_at)
        elif wanted >= begin:  # cut, and nobody says where
            earliest = min(end, max(begin, wanted - ids_each))
        else:
            earliest = begin
        targets[part] = end if settings.on_lost_offset == "latest" else earliest
    return targets, f"lost offset of {settings.topic}: {shown}; going on from the {settings.on_lost_offset}"


def _anew(error: OffsetLost, part: int, begin: int, end: int) -> str:
    """Say that a partition was cut and is longer again than what was read."""
    if not begin <= error.positions[part] <= end:
        return ""
    cut_at = error.cut.get(part)
    return f", written anew{'' if cut_at is None else f' from {cut_at}'}"
