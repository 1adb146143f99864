"""What keeps a node from forgetting: a pull towards the adapter it started from, and its own older windows.

Both are off unless asked for, and neither changes a guarantee:

- `Anchor` reads the parameters alone. A noised step is already released as far as the accounting goes, and the adapter
  that a round starts from is public, so the pull is post-processing of noised values: no datum enters it.
- `ReplayMemory` changes which of a unit's clicks a record is made of, never how many records a unit gives. Under
  "user" a user still gives at most one window a step, old or new. Under "example" an old window is a unit of its own,
  drawn with a smaller chance than a new one and charged as if with the same; no click is in two windows. Which windows
  are kept depends on how many there were, never on what is in them. Old clicks are charged where they were: in the
  data epoch that they were kept in.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import torch

from client.dataset import MIN_CLICKS, NodeData
from common.errors import ArtifactCorrupt
from common.ids import rng_for
from common.items import Catalogue
from common.store import write_atomic

FORMAT = 1
MEMORY_NAME = "replay.json"


class Anchor:
    """The proximal step of FedProx (Li et al., 2020, arXiv 1812.06127), towards the parameters at the start.

    ``w <- w_0 + (w - w_0) / (1 + learning_rate * strength)`` minimises ``strength / 2 |v - w_0|^2`` and
    ``1 / (2 learning_rate) |v - w|^2`` together, so it is stable for any strength. Taken after each step.

    Parameters
    ----------
    parameters
        As they are now: what is pulled, and towards what.
    strength
        Mu of FedProx, at least 0.
    learning_rate
        Of the steps in between.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], strength: float, learning_rate: float) -> None:
        self._parameters = parameters
        self._starts = [parameter.detach().clone() for parameter in parameters]
        self._kept = 1.0 / (1.0 + learning_rate * strength)

    @torch.no_grad()
    def pull(self) -> None:
        """Shorten the way from the start."""
        for parameter, start in zip(self._parameters, self._starts, strict=True):
            parameter.copy_(start + self._kept * (parameter - start))


@dataclass(slots=True)
class _Epoch:
    """What is remembered of the people of one data epoch, item ids throughout."""

    present: dict[str, list[str]] = field(default_factory=dict)
    older: dict[str, list[list[str]]] = field(default_factory=dict)
    windows_seen: dict[str, int] = field(default_factory=dict)


class ReplayMemory:
    """Windows of clicks that a node's data no longer holds, on its own disk; nothing of it is ever sent.

    A click is old when it was in the node's data at an earlier round and its item is not in the user's clicks now. Of a
    user's old windows a uniform sample of fixed size is kept (Vitter, 1985, "Random sampling with a reservoir").

    Parameters
    ----------
    path
        Its file; deleting it forgets everything.
    epoch
        The data epoch that the node's data is charged to; windows of another epoch stay where they are.
    windows
        How many old windows a user are kept.
    """

    def __init__(self, path: Path, epoch: str, windows: int) -> None:
        self._path, self._epoch, self._windows = path, epoch, windows

    def recall(self, data: NodeData, catalogue: Catalogue, window: int) -> NodeData:
        """Return the data with the old windows beside it, after remembering what is there now.

        Parameters
        ----------
        data
            What the node holds now.
        catalogue
            Gives item rows their ids; old items that it lacks are left out.
        window
            Most clicks in a window.

        Raises
        ------
        ArtifactCorrupt
            When the file is damaged.
        """
        epochs = self._read()
        kept = epochs.setdefault(self._epoch, _Epoch())
        ids = catalogue.ids
        now = {user: [ids[int(row)] for row in rows] for user, rows in data.histories.items()}
        if now != kept.present:
            self._take_over(kept, now, window)
            self._write(epochs)
        older = {user: _rows(windows, now.get(user, ()), catalogue) for user, windows in kept.older.items()}
        return NodeData(data.histories, data.items, {user: windows for user, windows in older.items() if windows})

    def _take_over(self, kept: _Epoch, now: Mapping[str, list[str]], window: int) -> None:
        for user, before in sorted(kept.present.items()):
            known = {*now.get(user, ()), *(item for piece in kept.older.get(user, ()) for item in piece)}
            gone = [item for item in before if item not in known]
            for begin in range(0, len(gone), window):
                if len(piece := gone[begin : begin + window]) >= MIN_CLICKS:
                    self._keep(kept, user, piece)
        kept.present = dict(now)

    def _keep(self, kept: _Epoch, user: str, piece: list[str]) -> None:
        """Put a window into the user's reservoir, perhaps in place of another."""
        seen = kept.windows_seen.get(user, 0)
        kept.windows_seen[user] = seen + 1
        windows = kept.older.setdefault(user, [])
        if len(windows) < self._windows:
            windows.append(piece)
            return
        place = int(rng_for("reservoir", self._epoch, user, seen).integers(0, seen + 1))
        if place < self._windows:
            windows[place] = piece

    def _read(self) -> dict[str, _Epoch]:
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        try:
            found = msgspec.json.decode(raw, type=_File)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _damaged(self._path, f"cannot be read ({error})") from error
        if found.format != FORMAT or found.sha256 != _checksum(found.epochs):
            raise _damaged(self._path, f"has format {found.format} and another checksum than it says")
        return found.epochs

    def _write(self, epochs: dict[str, _Epoch]) -> None:
        write_atomic(self._path, msgspec.json.encode(_File(FORMAT, _checksum(epochs), epochs)))


@dataclass(frozen=True, slots=True)
class _File:
    format: int
    sha256: str
    epochs: dict[str, _Epoch]


def _checksum(epochs: Mapping[str, _Epoch]) -> str:
    return hashlib.sha256(msgspec.json.encode(epochs, order="sorted")).hexdigest()


def _rows(windows: Sequence[Sequence[str]], now: Sequence[str], catalogue: Catalogue) -> tuple[np.ndarray, ...]:
    """Return the windows as item rows, int64 [w], without what is clicked now or unknown; none of them too short."""
    again = set(now)
    old = [[item for item in window if item not in again] for window in windows]
    known = [[row for item in window if (row := catalogue.index(item)) is not None] for window in old]
    return tuple(np.array(rows, dtype=np.int64) for rows in known if len(rows) >= MIN_CLICKS)


def _damaged(path: Path, what: str) -> ArtifactCorrupt:
    return ArtifactCorrupt(
        f"{path} {what}",
        expected="old windows as this program wrote them",
        consequence="the node does not train",
        mend="delete it; the node then goes on without its old windows",
    )
