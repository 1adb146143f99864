"""A tiny node to test with: real encoder, real cache, random clicks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.dataset import NodeData
from client.dp import RecordHooks
from common.encoder.adapter import TextEncoder, initial_adapter
from common.encoder.cache import HiddenCache, open_or_build
from common.encoder.spec import EncoderSpec
from common.ids import rng_for
from common.instructions import Objective, PrivacyTerms, TrainRequest
from tests.encoders import WORDS

ITEMS = 24


@dataclass(frozen=True)
class Bench:
    """What a node needs besides its data, and the adapter that it starts from (B is not zero)."""

    encoder: TextEncoder
    cache: HiddenCache
    texts: tuple[str, ...]
    base: dict[str, np.ndarray]

    @property
    def b_names(self) -> tuple[str, ...]:
        return tuple(name for name in self.base if "lora_B" in name)

    @contextmanager
    def hooked(self, names: tuple[str, ...]) -> Iterator[RecordHooks]:
        """Load the base, train the named tensors, and hook them."""
        self.encoder.set_adapter(self.base)
        self.encoder.trainable(names)
        hooks = RecordHooks(self.encoder.peft)
        try:
            yield hooks
        finally:
            hooks.remove_hooks()


def make_bench(bert: Path | str, folder: Path, device: str = "cpu") -> Bench:
    """Build a bench of 24 items with texts of 0 to 12 words."""
    encoder = TextEncoder.load(EncoderSpec.from_name(str(bert)), device)
    rng = rng_for("bench")
    texts = tuple(" ".join(rng.choice(WORDS, size=row % 13)) for row in range(ITEMS))
    base = initial_adapter({name: array.shape for name, array in encoder.adapter().items()}, 0)
    for name in base:
        if "lora_B" in name:
            base[name] = (rng.standard_normal(base[name].shape) * 0.2).astype(np.float32)
    return Bench(encoder, open_or_build(folder, encoder, texts), texts, base)


def make_data(users: int = 4, clicks: int = 9, seed: int = 0) -> NodeData:
    """Return a node's data: so many users, each with so many random clicks."""
    rng = rng_for("clicks", seed)
    return NodeData({f"u{user}": rng.integers(0, ITEMS, size=clicks) for user in range(users)}, ITEMS)


def make_request(bench: Bench, **changes: object) -> TrainRequest:
    """Return a request of a run of two rounds with a small objective."""
    fields: dict[str, object] = {
        "run": "run-test",
        "round": 1,
        "base_version": "base",
        "strategy": "fedsvd",
        "trained": bench.b_names,
        "encoder_sha256": bench.encoder.sha256,
        "planned_steps": 4,
        "objective": Objective(window=4, negatives=3, local_steps=2),
        "privacy": PrivacyTerms("user", 8.0, 1e-3, 1.0),  # accounting is quick at rate 1
    }
    return TrainRequest(**(fields | changes))  # type: ignore[arg-type]  # fields by name
