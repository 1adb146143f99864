"""What travelled in a run, each way, by round and by client.

Counted are the arrays as they travel, with their header, and the messages of secret sums; not the metadata beside them
(less than a kilobyte) and what TLS and HTTP add.
"""

from collections.abc import Iterable
from typing import Any

from common.instructions import Uplink
from server.intake import RoundRecord


def traffic_of(history: Iterable[RoundRecord], uplink: Uplink) -> dict[str, Any]:
    """Return bytes up (from the nodes) and down, in all, by round, and by client: one that was asked, or answered."""
    rounds = [
        {
            "round": record.round,
            "up": record.up_bytes,
            "down": record.down_bytes,
            "up_per_client": record.reply_bytes // max(1, record.replied),
            "down_per_client": record.down_bytes // max(1, record.planned),
        }
        for record in history
    ]
    return {
        "uplink": uplink,
        "up": sum(each["up"] for each in rounds),
        "down": sum(each["down"] for each in rounds),
        "rounds": rounds,
    }


def size_in_words(count: float) -> str:
    """Return a number of bytes for people to read, in powers of 1024.

    >>> size_in_words(900), size_in_words(60_000), size_in_words(5_000_000)
    ('900 B', '59 KiB', '4.8 MiB')
    """
    if count < 1024:
        return f"{count:.0f} B"
    return f"{count / 1024:.0f} KiB" if count < 1024**2 else f"{count / 1024**2:.1f} MiB"
