"""Looking again and again, in a thread, for something new to serve."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from common.errors import AnabranchError

log = logging.getLogger(__name__)


@contextmanager
def polled(refresh: Callable[[], object], every: float) -> Iterator[None]:
    """Call `refresh` every so many seconds until the block is left."""
    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(every):
            try:
                refresh()
            except (AnabranchError, OSError) as error:
                log.warning("the store is not read: %s", error)
            except Exception:  # the thread must outlive any surprise in a version, or no later one would be taken up
                log.exception("a new version is not taken up")

    thread = threading.Thread(target=poll, name="anabranch-reload", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=30.0)
