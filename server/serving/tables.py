"""Many short texts in a few arrays: what a process maps from a file instead of holding an object for each.

A million ids as Python strings with a dictionary over them take some 170 MB in every process. Here they are their
bytes, one after another, and their hashes in order, which processes share through the page cache.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate
from typing import overload

import numpy as np

from common.items import Catalogue

_HASH_BYTES = 8
_REMEMBERED = 4_096
"""Rows of so many ids are at hand: a few items are most of what users did, and a user's list names some twice."""


class TextTable(Sequence[str]):
    """Texts by row.

    Parameters
    ----------
    raw
        All of them in UTF-8, one after another, uint8 [b].
    starts
        Where each begins, and where the last ends, int64 [n + 1].
    """

    def __init__(self, raw: np.ndarray, starts: np.ndarray) -> None:
        self.raw, self.starts = raw, starts
        # one number of an array takes numpy longer than all that is done with it here
        self._raw, self._starts = raw.data, starts.data

    @classmethod
    def of(cls, texts: Sequence[str]) -> "TextTable":
        """Put texts into a table."""
        return cls(*_packed([text.encode("utf-8", errors="surrogatepass") for text in texts]))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[str]: ...
    def __getitem__(self, row: int | slice) -> str | Sequence[str]:
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(len(self)))]
        count = len(self._starts) - 1
        if not -count <= row < count:
            raise IndexError(row)
        return self._bytes(row % count).decode("utf-8", errors="surrogatepass")

    def at(self, rows: Iterable[int]) -> list[str]:
        """Return the texts of some rows, none of which may be below 0."""
        raw, starts = self._raw, self._starts
        return [str(raw[starts[row] : starts[row + 1]], "utf-8", "surrogatepass") for row in rows]

    def _bytes(self, row: int) -> bytes:
        return bytes(self._raw[self._starts[row] : self._starts[row + 1]])

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what `TextTable` is made from, by name."""
        return {"raw": self.raw, "starts": self.starts}


class IdTable(TextTable):
    """Different texts by row, and the row by text.

    Parameters
    ----------
    raw, starts
        As for `TextTable`.
    hashes
        Of the texts, rising, uint64 [n].
    order
        The row that each hash is of, int64 [n].
    """

    def __init__(self, raw: np.ndarray, starts: np.ndarray, hashes: np.ndarray, order: np.ndarray) -> None:
        super().__init__(raw, starts)
        self.hashes, self.order = hashes, order
        self._hashes, self._order = hashes.data, order.data

    @classmethod
    def of(cls, texts: Sequence[str]) -> "IdTable":
        """Put ids into a table."""
        encoded = [text.encode("utf-8", errors="surrogatepass") for text in texts]
        digests = b"".join(blake2b(each, digest_size=_HASH_BYTES).digest() for each in encoded)
        hashes = np.frombuffer(digests, dtype="<u8")
        order = np.argsort(hashes, kind="stable")
        return cls(*_packed(encoded), hashes[order], order)

    def find(self, text: str) -> int | None:
        """Return the row of a text, or None where there is none."""
        given = text.encode("utf-8", errors="surrogatepass")
        wanted = int.from_bytes(blake2b(given, digest_size=_HASH_BYTES).digest(), "little")
        place = bisect_left(self._hashes, wanted)
        while place < len(self._hashes) and self._hashes[place] == wanted:
            row = self._order[place]
            if self._bytes(row) == given:
                return row
            place += 1
        return None

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what `IdTable` is made from, by name."""
        return {**super().arrays(), "hashes": self.hashes, "order": self.order}


def _packed(encoded: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    starts = np.fromiter(accumulate(map(len, encoded), initial=0), dtype=np.int64, count=len(encoded) + 1)
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), starts


class ItemTable:
    """What answers say of the items, and how questions name them.

    Parameters
    ----------
    ids, titles
        By row.
    categories
        Names, in order.
    starts, rows
        int64 [c + 1] and int32 [m]: ``rows[starts[j]:starts[j + 1]]`` are in category j.
    """

    def __init__(
        self, ids: IdTable, titles: TextTable, categories: IdTable, starts: np.ndarray, rows: np.ndarray
    ) -> None:
        self.ids, self.titles, self.categories, self.starts, self.rows = ids, titles, categories, starts, rows
        self._row_of = lru_cache(_REMEMBERED)(ids.find)

    @classmethod
    def of(cls, catalogue: Catalogue) -> "ItemTable":
        """Put a catalogue into a table."""
        within: dict[str, list[int]] = {}
        for row, item in enumerate(catalogue):
            for category in dict.fromkeys(item.categories):
                within.setdefault(category, []).append(row)
        names = sorted(within)
        starts = np.cumsum([0, *(len(within[name]) for name in names)]).astype(np.int64)
        rows = np.array([row for name in names for row in within[name]], dtype=np.int32)
        titles = TextTable.of([item.title for item in catalogue])
        return cls(IdTable.of(catalogue.ids), titles, IdTable.of(names), starts, rows)

    def __len__(self) -> int:
        return len(self.ids.starts) - 1

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def index(self, item_id: str) -> int | None:
        """Return the item's row, or None for an unknown id."""
        return self._row_of(item_id)

    def within(self, category: str) -> np.ndarray | None:
        """Return the rows of a category's items, int32, or None where there is no such category."""
        place = self.categories.find(category)
        return None if place is None else self.rows[self.starts[place] : self.starts[place + 1]]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all of it as arrays by name."""
        parts: dict[str, TextTable] = {"ids": self.ids, "titles": self.titles, "categories": self.categories}
        tables = {f"{part}.{name}": array for part, table in parts.items() for name, array in table.arrays().items()}
        return {**tables, "category.starts": self.starts, "category.rows": self.rows}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "ItemTable":
        """Return the table that `arrays` was asked of."""
        ids, categories = ids_from(arrays, "ids"), ids_from(arrays, "categories")
        titles = TextTable(arrays["titles.raw"], arrays["titles.starts"])
        return cls(ids, titles, categories, arrays["category.starts"], arrays["category.rows"])


def ids_from(arrays: Mapping[str, np.ndarray], part: str) -> IdTable:
    """Return the table of ids whose arrays are named ``part.raw`` and so on."""
    return IdTable(*(arrays[f"{part}.{name}"] for name in ("raw", "starts", "hashes", "order")))
