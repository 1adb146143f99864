"""What a run without rounds has under way between two versions: who was asked what, and from which adapter.

It is kept with every version. A server that died asks the same nodes for the same releases again: their ledgers charged
them already and charge nothing more, and the answers are the same bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from common.errors import ArtifactCorrupt
from common.store import pack_arrays, unpack_arrays

Arrays = Mapping[str, np.ndarray]
ERRANDS_NAME, BASES_NAME = "underway.json", "bases.safetensors"


@dataclass(frozen=True, slots=True)
class Errand:
    """One node's work, from the moment that it is asked until it has answered.

    Parameters
    ----------
    number
        From 1, in the order in which they were begun; the round that its request names.
    node
        Who does it.
    base
        How many versions there were when it was begun: it starts from the newest of them.
    due
        The simulated moment at which it is done; 0 where the order is that of arrival.
    """

    number: int
    node: int
    base: int
    due: float = 0.0


@dataclass(frozen=True, slots=True)
class Underway:
    """Where a run without rounds stands, besides its adapter.

    Parameters
    ----------
    errands
        Not answered yet, in the order of their numbers.
    begun
        Errands begun so far.
    moment
        The simulated moment of the newest version.
    taken
        Node to how often it was asked.
    bases
        The adapters that the errands start from, by their number of versions.
    """

    errands: tuple[Errand, ...] = ()
    begun: int = 0
    moment: float = 0.0
    taken: Mapping[int, int] = field(default_factory=dict)
    bases: Mapping[int, Arrays] = field(default_factory=dict)

    def files(self) -> dict[str, bytes]:
        """Return it as files of a round's artifact."""
        told = replace(self, bases={})
        named = {f"{base}/{name}": array for base, arrays in self.bases.items() for name, array in arrays.items()}
        return {ERRANDS_NAME: msgspec.json.encode(told), BASES_NAME: pack_arrays(named)}

    @classmethod
    def read(cls, errands: bytes, bases: bytes, where: str) -> "Underway":
        """Read `files` back.

        Raises
        ------
        ArtifactCorrupt
            When they say something else, naming `where`.
        """
        try:
            told = msgspec.json.decode(errands, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ArtifactCorrupt(f"{where} does not say what is under way ({error})") from error
        apart: dict[int, dict[str, np.ndarray]] = {}
        for key, array in unpack_arrays(bases, where).items():
            base, _, name = key.partition("/")
            apart.setdefault(int(base), {})[name] = array
        return replace(told, bases=apart)
