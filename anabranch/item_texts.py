"""What the federated side says of the items' texts, told to the stream's learner."""

from collections.abc import Callable
from pathlib import Path

from common.errors import AnabranchError, NoModel
from server.registry import CURRENT, Registry
from server.serving.bundle import VECTORS_FILE, load_vectors
from server.storage import storage_at
from server.store_info import STORE_NAME
from stream.state import ItemTexts


class NewestTexts:
    """The vectors of a store's current model, each version's once.

    Parameters
    ----------
    store
        Its folder; it may still lack a model.
    notice
        Told about a version that cannot be read; the texts before it stay.
    """

    def __init__(self, store: Path, notice: Callable[[str], None]) -> None:
        self._store, self._notice = store, notice
        self._told: str | None = None
        self._opened: tuple[bytes, Registry] | None = None

    def __call__(self) -> ItemTexts | None:
        """Return the current version's texts, or None when there is no version, or none since the last call."""
        try:
            registry = self._registry()
            name = registry.pointer(CURRENT)
            if name is None or name == self._told:
                return None
            self._told = name
            registry.verify(name, but=(VECTORS_FILE,))
            return ItemTexts(registry.catalogue.ids, load_vectors(registry, name, mapped=True))
        except NoModel:
            return None
        except AnabranchError as error:
            self._notice(f"the items' texts are not taken from {self._store}: {error}")
            return None

    def _registry(self) -> Registry:
        """Return the store, open since an earlier call where it still is the same one: its catalogue never changes."""
        storage = storage_at(self._store)
        try:
            description = storage.read(STORE_NAME)
        except OSError:
            return Registry.open(self._store)  # which says what is missing
        if self._opened is None or self._opened[0] != description:
            self._opened, self._told = (description, Registry.of(storage)), None
        return self._opened[1]
