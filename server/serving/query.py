"""Query text to vector, always with the adapter of the bundle that the vector is compared with."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from common.errors import StoreMismatch
from server.serving.bundle import Model

BATCH = 64
"""Most texts of one pass of the encoder: whoever waits for the next pass waits for all of this one."""
CACHED = 10_000
"""So many vectors are kept, the ones that were asked for last: 15 MB of 384 numbers each."""
WARM_WORDS = 24
"""Questions of up to so many words find everything prepared."""
LONGEST_CACHED = 1_000
"""Longer texts, in characters, are hardly asked for twice."""


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


@dataclass(slots=True, eq=False)
class _Wish:
    """A text that waits for its vector."""

    model: Model
    text: str
    vector: np.ndarray | None = None
    error: Exception | None = None


class QueryTexts:
    """Encodes queries with one shared encoder, whichever version asks.

    The encoder changes in place, so while versions are swapped a reader of the old one and a reader of the new one
    would see each other's adapter: a lock covers "set the adapter, then encode".

    Whoever gets the lock encodes, in one pass, what all of those who wait for it want of the same model; they find
    their vector done. So under load a pass serves many, and a single question waits for nobody.

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
        # for what follows, held for moments only
        self._desk = threading.Lock()
        self._waiting: list[_Wish] = []
        self._vectors: OrderedDict[str, np.ndarray] = OrderedDict()
        self._vectors_of: Model | None = None

    def warm(self, model: Model) -> None:
        """Load the encoder, install the model's adapter and encode a little; errors as for `vector`."""
        with self._lock:
            encoder = self._ready(model)
            # the first pass prepares what later ones use, which takes several times as long; and so does, in part, the
            # first one of each length
            for words in range(1, WARM_WORDS + 1):
                encoder.encode([" ".join(["warm"] * words)])

    def vector(self, model: Model, text: str) -> np.ndarray:
        """Return the text's unit vector under the model's adapter, float32 [d].

        Raises
        ------
        StoreMismatch
            When the base encoder found here is not the one that the model was trained on.
        EncoderError
            When it cannot be loaded.
        """
        wish = _Wish(model, text)
        with self._desk:
            if self._vectors_of is model and text in self._vectors:
                self._vectors.move_to_end(text)
                return self._vectors[text]
            self._waiting.append(wish)
        with self._lock:
            if wish.vector is None and wish.error is None:
                self._encode_with(wish)
        if wish.error is not None:
            raise wish.error
        assert wish.vector is not None  # noqa: S101  one of the two was set
        return wish.vector

    def _encode_with(self, wish: _Wish) -> None:
        """Encode what is waiting beside a wish and goes with it."""
        with self._desk:
            alike = [other for other in self._waiting if other.model is wish.model and other is not wish]
            batch = [wish, *alike[: BATCH - 1]]
            taken = set(map(id, batch))
            self._waiting = [other for other in self._waiting if id(other) not in taken]
        texts = list(dict.fromkeys(each.text for each in batch))
        try:
            rows = self._ready(wish.model).encode(texts)
        except Exception as error:  # each of those who wait gets it as if it had asked alone
            for each in batch:
                each.error = error
            return
        vectors = dict(zip(texts, rows, strict=True))
        for each in batch:
            each.vector = vectors[each.text]
        self._remember(wish.model, vectors)

    def _remember(self, model: Model, vectors: Mapping[str, np.ndarray]) -> None:
        with self._desk:
            if self._vectors_of is not model:
                self._vectors.clear()
                self._vectors_of = model
            for text, vector in vectors.items():
                if len(text) <= LONGEST_CACHED:
                    # a copy: a row would keep the whole batch
                    self._vectors[text] = vector.copy()
            while len(self._vectors) > CACHED:
                self._vectors.popitem(last=False)

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
