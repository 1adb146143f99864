"""Query text to vector, always with the adapter of the bundle that the vector is compared with."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from common.errors import StoreMismatch
from server.serving.bundle import Model


class QueryEncoder(Protocol):
    """The part of `common.encoder.adapter.TextEncoder` that serving needs."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the base weights."""
        ...

    def set_adapter(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Load an adapter in place."""
        ...

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit rows, float32 [n, d]."""
        ...


class QueryTexts:
    """Encodes queries with one shared encoder, whichever version asks.

    The encoder changes in place, so while versions are swapped a reader of the old one and a reader of the new one
    would see each other's adapter: a lock covers "set the adapter, then encode".

    Parameters
    ----------
    load
        Base encoder name to encoder; called once, at the first query or by `warm`.
    """

    def __init__(self, load: Callable[[str], QueryEncoder]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._encoder: QueryEncoder | None = None
        self._installed: Model | None = None

    def warm(self, model: Model) -> None:
        """Load the encoder and install the model's adapter; errors as for `vector`."""
        with self._lock:
            self._ready(model)

    def vector(self, model: Model, text: str) -> np.ndarray:
        """Return the text's unit vector under the model's adapter, float32 [d].

        Raises
        ------
        StoreMismatch
            When the base encoder found here is not the one that the model was trained on.
        EncoderError
            When it cannot be loaded.
        """
        with self._lock:
            vector: np.ndarray = self._ready(model).encode([text])[0]
        return vector

    def _ready(self, model: Model) -> QueryEncoder:
        if self._encoder is None:
            self._encoder = self._load(model.manifest.base_encoder)
        if self._installed is not model:
            expected = model.manifest.base_sha256
            if self._encoder.sha256 != expected:
                raise StoreMismatch(
                    f"encoder {model.manifest.base_encoder!r} here has SHA-256 {self._encoder.sha256}",
                    expected=expected,
                    consequence="queries by text are refused, their vectors would fit no item",
                    mend="install the encoder that the store was made with",
                )
            self._installed = None  # set_adapter may fail halfway
            self._encoder.set_adapter(model.adapter)
            self._installed = model
        return self._encoder
