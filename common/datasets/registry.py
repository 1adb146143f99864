"""Data sets by name: built in, made up, or imported."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from common.clock import Clock, wall_clock
from common.datasets.base import Dataset
from common.datasets.cache import DatasetCache, cache_folder
from common.datasets.movielens import MOVIELENS_100K, MOVIELENS_SMALL
from common.datasets.online_retail import ONLINE_RETAIL
from common.datasets.source import Obtained, Source
from common.datasets.synthetic import LICENCE as SYNTHETIC_LICENCE
from common.datasets.synthetic import NAME as SYNTHETIC
from common.datasets.synthetic import make_synthetic, parse_spec
from common.datasets.tabular import LICENCE as IMPORT_LICENCE
from common.datasets.tabular import ColumnMapping, check_name, normalised_files, read_normalised, read_table
from common.errors import ArtifactCorrupt, DatasetUnavailable, InvalidSetting, UnknownName
from common.progress import Progress, silent

SOURCES = {source.name: source for source in (MOVIELENS_100K, MOVIELENS_SMALL, ONLINE_RETAIL)}
Notice = Callable[[str], None]
"""Called with a line that people must see: a licence, a guess, rows left out."""


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What `anabranch data list` shows.

    Parameters
    ----------
    name
        For `load_dataset`.
    cached
        Whether it can be read without any network.
    licence, source
        One line each.
    """

    name: str
    cached: bool
    licence: str
    source: str


def dataset_names(cache: Path | None = None) -> tuple[str, ...]:
    """Return the names that `load_dataset` knows: the built-in ones, then the imported ones."""
    built_in = (*SOURCES, SYNTHETIC)
    return built_in + tuple(name for name in DatasetCache(cache_folder(cache)).names() if name not in built_in)


def list_datasets(cache: Path | None = None) -> tuple[DatasetInfo, ...]:
    """Describe every data set that is known here, without reading any."""
    stored = DatasetCache(cache_folder(cache))
    found = []
    for name in dataset_names(cache):
        if name in SOURCES:
            found.append(DatasetInfo(name, stored.holds(name), SOURCES[name].licence, SOURCES[name].origin))
        elif name == SYNTHETIC:
            found.append(
                DatasetInfo(name, True, SYNTHETIC_LICENCE, "made from a seed: synthetic:users=N,items=N,events=N")
            )
        else:
            found.append(DatasetInfo(name, True, IMPORT_LICENCE, _origin(stored, name)))
    return tuple(found)


def _origin(stored: DatasetCache, name: str) -> str:
    try:
        return str(stored.details(name).get("origin", ""))
    except ArtifactCorrupt:
        return "damaged: import it again"


def load_dataset(
    name: str,
    *,
    cache: Path | None = None,
    seed: int = 0,
    fetch: bool = True,
    progress: Progress = silent,
    notice: Notice,
    clock: Clock = wall_clock,
) -> Dataset:
    """Return a data set, from the cache if it is there, else obtained now.

    Parameters
    ----------
    name
        One of `dataset_names`, or "synthetic:users=N,items=N,events=N".
    cache
        The cache folder; see `common.datasets.cache.cache_folder` for what None means.
    seed
        For synthetic data; nothing else depends on it.
    fetch
        Whether the network may be used.
    progress
        Told about downloads.
    notice
        Told the licence when the data set is obtained for the first time, and when a damaged copy is replaced.
    clock
        Dates the cached copy.

    Raises
    ------
    UnknownName
        When there is no such data set.
    InvalidSetting
        When the size of a synthetic one makes no sense.
    DatasetUnavailable
        When it can be had from none of its sources, naming them; nothing is left in the cache.
    """
    if name.partition(":")[0] == SYNTHETIC:
        return make_synthetic(parse_spec(name), seed, name)
    stored = DatasetCache(cache_folder(cache))
    source = SOURCES.get(name)
    if source is None:
        return _read_imported(name, stored, cache)
    damage = ""
    if stored.holds(name):
        try:
            return _read_cached(source, stored)
        except ArtifactCorrupt as error:
            damage = f"the copy of {name} in the cache is damaged ({error.found})"
    if not fetch:
        raise DatasetUnavailable(
            damage or f"{name} is not in the cache {stored.folder}",
            mend=f"`anabranch data fetch {name}`, or use --data synthetic",
        )
    if damage:
        notice(f"{damage}; obtaining it again")
    return _store(source, source.download(progress), stored, notice, clock)


def fetch_dataset(
    name: str,
    *,
    cache: Path | None = None,
    origin: Path | None = None,
    progress: Progress = silent,
    notice: Notice,
    clock: Clock = wall_clock,
) -> Dataset:
    """Put a data set into the cache and return it; see `load_dataset`.

    Parameters
    ----------
    name
        One of `dataset_names`.
    cache, progress, notice, clock
        As for `load_dataset`.
    origin
        A folder or file of the user's to take it from, instead of the network; replaces a cached copy.

    Raises
    ------
    InvalidSetting
        When `origin` is given for a data set that takes none.
    DatasetUnavailable, DataError
        When it cannot be had or read; the cache stays as it was.
    """
    if origin is None:
        return load_dataset(name, cache=cache, progress=progress, notice=notice, clock=clock)
    source = SOURCES.get(name)
    if source is None:
        if name not in dataset_names(cache):
            raise UnknownName("data set", name, list(SOURCES))
        raise InvalidSetting(f"--from for {name!r}", expected=f"one of {', '.join(SOURCES)}")
    return _store(source, source.adopt(origin), DatasetCache(cache_folder(cache)), notice, clock)


def import_dataset(
    name: str,
    file: Path,
    mapping: ColumnMapping,
    *,
    items: Path | None = None,
    cache: Path | None = None,
    notice: Notice,
    clock: Clock = wall_clock,
) -> Dataset:
    """Read a CSV or Parquet file and store it under a name of its own; an import of the same name is replaced.

    See `common.datasets.tabular.read_table` for what is read and what is refused; when anything is, nothing is stored.
    """
    check_name(name, (*SOURCES, SYNTHETIC))
    dataset = read_table(name, file, mapping, items, notice)
    details = {"origin": dataset.source, "licence": dataset.licence, "dropped": dict(dataset.dropped)}
    DatasetCache(cache_folder(cache)).write(name, normalised_files(dataset), details, clock())
    return dataset


def _store(source: Source, obtained: Obtained, stored: DatasetCache, notice: Notice, clock: Clock) -> Dataset:
    # read before it is stored: what cannot be read never enters the cache
    dataset = replace(source.read(obtained.files), source=obtained.origin)
    details = {"origin": obtained.origin, "licence": source.licence}
    first = not stored.holds(source.name)
    stored.write(source.name, obtained.files, details, clock())
    if first:
        notice(source.notice)
    return dataset


def _read_cached(source: Source, stored: DatasetCache) -> Dataset:
    cached = stored.read(source.name)
    return replace(source.read(cached.files), source=str(cached.details.get("origin", "")))


def _read_imported(name: str, stored: DatasetCache, cache: Path | None) -> Dataset:
    if name not in stored.names():
        raise UnknownName(
            "data set", name, list(dataset_names(cache)), mend="`anabranch data import` makes one of your own file"
        )
    try:
        details = stored.read(name).details
        return read_normalised(name, stored.path(name), details)
    except ArtifactCorrupt as error:
        raise DatasetUnavailable(
            f"the stored copy of {name} is damaged: {error.found}", mend="import it again with `anabranch data import`"
        ) from error
