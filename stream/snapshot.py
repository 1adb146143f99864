"""Hands the learned factors to serving: an immutable folder, then a pointer to it.

`<store>/stream/snapshots/<name>/` as `common.snapshots` writes it, and `<store>/stream/snapshots/current`: one line,
the newest name. Readers follow the pointer; the last few folders stay, so a reader in the middle is not cut off.
"""

from pathlib import Path

from common.snapshots import MFSnapshot, write_snapshot
from common.store import write_atomic
from stream.checkpoint import SNAPSHOTS, replacing_oldest, sequence_name

CURRENT = "current"


def publish_snapshot(store: Path, snapshot: MFSnapshot, sequence: int, created_at: int, keep: int = 3) -> Path:
    """Write the snapshot in the place of the oldest beyond `keep`, point `current` at it; return its folder."""
    folder = store / SNAPSHOTS / sequence_name(sequence)
    with replacing_oldest(folder.parent, keep):
        write_snapshot(folder, snapshot, created_at)
        write_atomic(folder.parent / CURRENT, f"{folder.name}\n".encode())
    return folder


def current_snapshot(store: Path) -> str | None:
    """Return the name of the newest snapshot, or None when there is none yet."""
    try:
        return (store / SNAPSHOTS / CURRENT).read_text("utf-8").strip()
    except FileNotFoundError:
        return None
