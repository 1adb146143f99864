"""Items and the catalogue they form."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from common.errors import DataError, EmptyData


@dataclass(frozen=True, slots=True)
class Item:
    """Something that can be recommended.

    Parameters
    ----------
    item_id
        Its id in the interactions.
    title
        What people call it; shown in answers.
    text
        What the encoder reads: title and whatever describes it.
    categories
        Genres, departments, tags.
    published_at
        Milliseconds since the epoch, or None when unknown.
    vectors
        Further features by name, each a tuple of floats.
    """

    item_id: str
    title: str
    text: str
    categories: tuple[str, ...] = ()
    published_at: int | None = None
    vectors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


class Catalogue:
    """Items in a fixed order, found by id or by position.

    Parameters
    ----------
    items
        In the order that gives them their index.

    Raises
    ------
    EmptyData
        When there is no item.
    DataError
        When two items share an id.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = tuple(items)
        if not self._items:
            raise EmptyData("a catalogue without items", expected="at least one item")
        self._index = {item.item_id: position for position, item in enumerate(self._items)}
        if len(self._index) != len(self._items):
            twice = next(i.item_id for n, i in enumerate(self._items) if self._index[i.item_id] != n)
            raise DataError(f"item id {twice!r} occurs twice", expected="one row an item")

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def __getitem__(self, position: int) -> Item:
        return self._items[position]

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._index

    def index(self, item_id: str) -> int | None:
        """Return the item's position, or None for an unknown id."""
        return self._index.get(item_id)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids in catalogue order."""
        return tuple(item.item_id for item in self._items)

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts in catalogue order."""
        return tuple(item.text for item in self._items)
