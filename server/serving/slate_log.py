"""Slates as they were shown, in JSON lines: what off-policy evaluation needs beside the clicks that followed."""

import json
import logging
import os
import threading
from pathlib import Path
from time import gmtime, strftime
from typing import Any

from common.errors import ServiceError

log = logging.getLogger(__name__)
_OWNER_ONLY = 0o600


class SlateLog:
    """Appends one line a slate to a file a day (UTC), which its owner alone can read.

    A line holds the slate as it was answered, without titles and reasons, and the question, without its text. Clicks
    name the slate by `request_id`. A line that cannot be written is counted and logged; the answer is given all the
    same.

    Parameters
    ----------
    folder
        Made where it is missing.

    Raises
    ------
    ServiceError
        When the folder cannot be made or written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, threading.Lock()
        self.lost = 0
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ServiceError(
                f"folder {folder} cannot be made: {error.strerror}", mend="another --slate-log"
            ) from error
        if not os.access(folder, os.W_OK):
            raise ServiceError(f"folder {folder} cannot be written to", mend="another --slate-log")

    def add(self, moment: int, asked: dict[str, Any], slate: dict[str, Any]) -> None:
        """Append a slate; `moment` in milliseconds since the epoch."""
        kept = ("item_id", "rank", "score", "propensity")
        line = {
            "ts": moment,
            **{name: value for name, value in slate.items() if name != "items"},
            **asked,
            "items": [{name: item[name] for name in kept} for item in slate["items"]],
        }
        path = self._folder / f"slates-{strftime('%Y-%m-%d', gmtime(moment // 1000))}.jsonl"
        raw = (json.dumps(line) + "\n").encode("ascii")
        try:
            with self._lock:
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, _OWNER_ONLY)
                try:
                    os.write(handle, raw)
                finally:
                    os.close(handle)
        except OSError as error:
            self.lost += 1
            log.warning("a slate is not logged, %d so far: %s", self.lost, error.strerror)
