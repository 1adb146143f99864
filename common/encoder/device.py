"""What a device with memory of its own needs: batches that fit, room that others need too, sums that repeat.

Several processes may share one GPU (the workers of a simulation do), and none of them knows of the others: each keeps
there little of what it finds free, and halves its batch when it meets the end of the memory.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from common.errors import InvalidSetting, OutOfMemory, UnknownName

DEVICES = ("auto", "cpu", "cuda", "mps")
SHARE_OF_FREE = 1 / 16
"""Of the device's free memory, what a process keeps there for good at most."""

log = logging.getLogger(__name__)
T = TypeVar("T")


def resolve_device(name: str) -> torch.device:
    """Turn "auto", "cpu", "cuda" or "mps" into a device; auto takes a GPU where there is one.

    Raises
    ------
    UnknownName
        Another name.
    InvalidSetting
        A device that this machine lacks.
    """
    kind = name.partition(":")[0]
    if kind not in DEVICES:
        raise UnknownName("device", name, list(DEVICES))
    has = {"auto": True, "cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not has[kind]:
        raise InvalidSetting(
            f"device {name!r} is not here", expected="a device that torch sees", mend="use --device auto"
        )
    if kind == "auto":
        name = "cuda" if has["cuda"] else "mps" if has["mps"] else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        # read by cuBLAS when it starts: it then multiplies alike each time (`common.encoder.device.repeatable`)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return device


def has_room(device: torch.device, size: int) -> bool:
    """Tell whether so many bytes may stay on a device: never where its memory is the processor's own."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return size <= free * SHARE_OF_FREE


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Have a GPU add up in the same order each time, so that a seed gives the same bytes; a processor does anyway."""
    before = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # torch sets it at run time
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a check, not needed here
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]  # as above


class Batches:
    """Batches of a size that is halved once, where the device's memory does not hold one.

    Parameters
    ----------
    size
        Most in a batch.
    what
        What is in one, in words ("records to train on").
    """

    def __init__(self, size: int, what: str) -> None:
        self._size, self._what, self._halved = size, what, False

    def over(self, count: int, work: Callable[[slice], T]) -> Iterator[T]:
        """Yield what `work` returns for each batch of ``range(count)``, in order.

        Parameters
        ----------
        count
            How many there are.
        work
            Must bear to be called again after it failed: a batch that does not fit is done again, in parts.

        Raises
        ------
        OutOfMemory
            When half a batch does not fit either.
        """
        start = 0
        while start < count:
            batch = slice(start, min(start + self._size, count))
            try:
                done = work(batch)
            except torch.OutOfMemoryError as error:
                self._halve(batch.stop - batch.start, error)
            else:
                start = batch.stop
                yield done
                continue
            # only here, where the error and with it the tensors of its frames are gone
            torch.cuda.empty_cache()

    def _halve(self, failed: int, error: torch.OutOfMemoryError) -> None:
        if self._halved or failed < 2:
            raise OutOfMemory(
                f"no memory for {failed} {self._what}: {str(error).partition('. ')[0]}",
                expected="room for half a batch",
                consequence="nothing of this batch is used",
                mend="use fewer --workers (they share the GPU), a shorter --window, fewer --negatives, or --device cpu",
            ) from error
        self._size, self._halved = failed // 2, True
        log.warning("no memory for %d %s at once; going on with %d", failed, self._what, self._size)
