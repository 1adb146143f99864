"""What the federated side says of the items' texts, told to the stream's learner."""

from pathlib import Path

from common.errors import NoModel
from server.registry import Registry
from server.serving.bundle import load_model
from stream.state import ItemTexts


def item_texts(store: Path) -> ItemTexts | None:
    """Return the vectors of the store's current model, or None before there is one.

    Raises
    ------
    StoreMismatch, ArtifactCorrupt
        When the model cannot be read.
    """
    try:
        registry = Registry.open(store)
        return ItemTexts(registry.catalogue.ids, load_model(registry).item_vectors)
    except NoModel:
        return None
