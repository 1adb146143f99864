"""How arithmetic on arrays is compiled, by numba: once an installation, where there is a place to keep machine code.

Numba keeps the code of a function's signatures in numbered files, and the numbers in one index, which is read, changed
and written back. Two processes that compile at once may both take a number: one signature then has the code of another,
for good, and the answer is an error or a wrong number (a relative of numba's issue 10128). Nor does numba see that what
a function calls has changed in another file. Here each signature has a file named after it, which says what it was made
of and ends with a hash.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any, TypeVar

import numba
import numpy as np
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.dispatcher import Dispatcher

F = TypeVar("F", bound=Callable[..., object])
_HASH_BYTES = hashlib.sha256().digest_size


def compiled(function: F) -> F:
    """Compile, and keep the machine code beside the source, in NUMBA_CACHE_DIR, or in the user's cache."""
    return _kept(function)


def compiled_sum(function: F) -> F:
    """As `compiled`, and let sums be re-ordered so that they run on all lanes."""
    return _kept(function, fastmath={"reassoc"})


def compiled_max(function: F) -> F:
    """As `compiled_sum`, for numbers of which none is NaN: the order in which maxima are taken does not matter then."""
    return _kept(function, fastmath={"reassoc", "nnan", "nsz"})


def _kept(function: F, **options: Any) -> F:
    # division by zero gives infinity, as numpy's does
    made: Any = numba.njit(error_model="numpy", **options)(function)
    with suppress(RuntimeError):  # no folder may be written to, so each process compiles for itself
        made._cache = _KeptCode(made)  # noqa: SLF001  numba's one place for a cache, with no public way to it
    kept: F = made
    return kept


class _KeptCode(FunctionCache):  # type: ignore[misc]  # numba has no types, so to mypy its class is Any
    """Finds the machine code of one function.

    Raises
    ------
    RuntimeError
        When there is no place for it.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        super().__init__(dispatcher.py_func)
        locator = self._impl.locator
        stamp = locator.get_source_stamp()
        # asked when it is needed first: what a function calls may be defined below it
        made = cache(lambda: (stamp, made_of(dispatcher)))
        self._cache_file = KeptFiles(locator.get_cache_path(), self._impl.filename_base, made)


class KeptFiles(IndexDataCacheFile):  # type: ignore[misc]  # numba has no types, so to mypy its class is Any
    """One file for each signature of a function; takes the place of numba's index and numbered files.

    Parameters
    ----------
    cache_path
        Folder of the files.
    filename_base
        How their names begin.
    source_stamp
        Tells what the code is made of; a file of something else is not used, and overwritten.
    """

    def save(self, key: tuple[object, ...], data: object) -> None:
        """Keep the code of a signature."""
        content = self._dump((self._version, self._source_stamp(), key, data))
        with self._open_for_write(self._data_path(self._name_of(key))) as file:
            file.write(content + hashlib.sha256(content).digest())

    def load(self, key: tuple[object, ...]) -> Any:
        """Return the code of a signature, or None where none is kept, or what is kept is damaged or of other source."""
        name = self._name_of(key)
        try:
            content = Path(self._data_path(name)).read_bytes()
            # after a power cut a file may have its length and not its content
            if hashlib.sha256(content[:-_HASH_BYTES]).digest() != content[-_HASH_BYTES:]:
                return None
            version, stamp, kept, data = self._load_data(name)
        except OSError:
            return None
        return data if (version, stamp, kept) == (self._version, self._source_stamp(), key) else None

    def flush(self) -> None:
        """Forget nothing: what is of other source is overwritten."""

    def _name_of(self, key: tuple[object, ...]) -> str:
        # not the source: its next version shall overwrite this one
        digest = hashlib.sha256(repr(key[:2]).encode()).hexdigest()
        return f"{self._data_name(0).removesuffix('.0.nbc')}.{digest[:16]}.nbc"


def made_of(dispatcher: Dispatcher) -> str:
    """Return a hash of all that a function's machine code is made of: what it calls and names in other files too."""
    return hashlib.sha256("\n".join(_parts(dispatcher, set())).encode()).hexdigest()


def _parts(dispatcher: Dispatcher, met: set[int]) -> Iterator[str]:
    if id(dispatcher) in met:
        return
    met.add(id(dispatcher))
    function = dispatcher.py_func
    yield repr(sorted((name, _told(option)) for name, option in dispatcher.targetoptions.items()))
    for code in _codes(function.__code__):
        constants = [_told(each) for each in code.co_consts if not isinstance(each, CodeType)]
        yield repr((code.co_code, constants, code.co_names))
        for name in code.co_names:
            value = function.__globals__.get(name)
            if isinstance(value, Dispatcher):
                yield from _parts(value, met)
            elif isinstance(value, int | float | str | tuple | np.generic):
                yield _told(value)


def _told(value: object) -> str:
    # sets have another order in each process
    return repr(sorted(map(repr, value)) if isinstance(value, set | frozenset) else value)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _codes(each)


@compiled_sum
def dot(left: np.ndarray, right: np.ndarray) -> np.float32:
    """Return the product of two float32 vectors."""
    total = np.float32(0.0)
    for place in range(len(left)):
        total += left[place] * right[place]
    return total
