"""The port that every built-in data set with files implements."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.datasets.base import Dataset
from common.progress import Progress

Files = Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Obtained:
    """Files as they came, and from where.

    Parameters
    ----------
    files
        Name to content; `Source.read` takes them.
    origin
        One line for people.
    """

    files: Files
    origin: str


@dataclass(frozen=True, slots=True)
class Source:
    """A data set that is obtained once and then read from the cache.

    Parameters
    ----------
    name
        As given on the command line.
    licence
        One line.
    notice
        What must be said when the data set is obtained for the first time.
    origin
        Where it is obtained from, one line.
    download
        Obtains it over the network; raises DatasetUnavailable naming every address tried.
    adopt
        Takes it from a folder or file that the user has.
    read
        Files to data set, without touching the disk; raises DataError for what it cannot read.
    """

    name: str
    licence: str
    notice: str
    origin: str
    download: Callable[[Progress], Obtained]
    adopt: Callable[[Path], Obtained]
    read: Callable[[Files], Dataset]
