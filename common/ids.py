"""Stable hashes of ids: the same in every process, on every machine, for ever."""

import hashlib
from collections.abc import Iterable

import numpy as np


def stable_hash(*parts: str | int) -> int:
    """Return an unsigned 64-bit hash of the parts (BLAKE2b, parts kept apart).

    Unlike ``hash()`` it is not salted per process, so seeds, partitions and rows agree everywhere.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        raw = str(part).encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return int.from_bytes(digest.digest(), "little")


def rng_for(*parts: str | int) -> np.random.Generator:
    """Return a generator seeded by the parts alone."""
    return np.random.Generator(np.random.PCG64(stable_hash(*parts)))


def arrays_sha256(arrays: Iterable[tuple[str, np.ndarray]]) -> str:
    """Return the SHA-256 of named arrays: names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays, key=lambda pair: pair[0]):
        contiguous = np.ascontiguousarray(array)
        digest.update(f"{name}|{contiguous.dtype.str}|{contiguous.shape}|".encode())
        digest.update(contiguous.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
