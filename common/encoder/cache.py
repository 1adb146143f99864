"""The frozen lower layers, run once for each item text and shared by every process through the page cache.

One safetensors file holds the hidden states of all texts end to end (no padding) and where each begins. It is
memory-mapped, so workers that open the same file share its pages. With a GPU each worker copies it there once, where it
takes little of the memory.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from common.encoder.adapter import TextEncoder
from common.encoder.device import has_room
from common.encoder.texts import pad_tokens, text_batches
from common.errors import ArtifactCorrupt
from common.ids import stable_hash
from common.progress import Progress, silent
from common.store import pack_arrays, write_atomic

CACHE_FORMAT = 2


class HiddenCache:
    """Hidden states below the adapter, for a fixed list of texts.

    Parameters
    ----------
    hidden
        float32 [t, h]: the tokens of all texts end to end.
    starts
        int64 [n + 1]: text i has tokens ``starts[i]:starts[i + 1]``.
    """

    def __init__(self, hidden: torch.Tensor, starts: torch.Tensor) -> None:
        self._hidden, self._starts = hidden, starts
        self.lengths = (starts[1:] - starts[:-1]).cpu().numpy()

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def open(cls, path: Path) -> "HiddenCache":
        """Map a cache file.

        Raises
        ------
        ArtifactCorrupt
            When it is none.
        """
        try:
            with safe_open(path, framework="pt") as file:
                hidden, starts, checksum = (file.get_tensor(name) for name in ("hidden", "starts", "checksum"))
        except (SafetensorError, OSError) as error:
            raise ArtifactCorrupt(
                f"{path} is not a cache of hidden states", mend="delete it; it is made again"
            ) from error
        found = _checksum(hidden.numpy(), starts.numpy())
        if not np.array_equal(found, checksum.numpy()):
            raise ArtifactCorrupt(
                f"{path} has checksum {found[0]}",
                expected=f"{checksum.tolist()}",
                consequence="nothing is encoded from it",
                mend="delete it; it is made again",
            )
        return cls(hidden, starts)

    def on(self, device: torch.device) -> "HiddenCache":
        """Return the cache in a device's own memory, where it takes little of that; else itself."""
        if not has_room(device, self._hidden.nbytes):
            return self
        return HiddenCache(self._hidden.to(device), self._starts.to(device))

    def batch(self, rows: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Gather texts by row, padded to the longest: float32 [n, l, h] and bool mask [n, l]."""
        here = self._hidden.device
        index = torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(here, non_blocking=True)
        begin, end = self._starts[index], self._starts[index + 1]
        steps = torch.arange(int(self.lengths[rows].max()), device=here)
        mask = steps[None, :] < (end - begin)[:, None]
        positions = torch.minimum(begin[:, None] + steps[None, :], end[:, None] - 1)
        return self._hidden[positions].to(device), mask.to(device)


def _checksum(hidden: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the CRC-32 of both arrays as int64 [1]: it finds a flipped byte, and reads a file once."""
    return np.array([zlib.crc32(starts.data, zlib.crc32(hidden.data))], dtype=np.int64)


@torch.no_grad()
def open_or_build(folder: Path, encoder: TextEncoder, texts: Sequence[str], progress: Progress = silent) -> HiddenCache:
    """Return the cache for these texts under this encoder, computing it on first use.

    The file's name hashes base weights, split, length limit and all texts: another input is another file.
    """
    key = stable_hash(CACHE_FORMAT, encoder.sha256, encoder.first_trained, encoder.max_tokens, *texts)
    path = folder / f"hidden-{key:016x}.safetensors"
    if not path.exists():
        write_atomic(path, pack_arrays(_run_lower(encoder, texts, progress)))
    return HiddenCache.open(path).on(encoder.device)


def _run_lower(encoder: TextEncoder, texts: Sequence[str], progress: Progress) -> dict[str, np.ndarray]:
    token_ids = encoder.tokenize(texts)
    lengths = np.array([len(ids) for ids in token_ids], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    hidden = np.empty((int(starts[-1]), encoder.dimension), dtype=np.float32)
    order = np.argsort(lengths, kind="stable")
    done = 0

    def below(batch: slice) -> tuple[np.ndarray, np.ndarray]:
        ids, mask = pad_tokens([token_ids[i] for i in order[batch]], encoder.device)
        return order[batch], encoder.lower(ids, mask).float().cpu().numpy()

    for rows, states in text_batches(encoder.device).over(len(order), below):
        for row, state in zip(rows, states, strict=True):
            hidden[starts[row] : starts[row + 1]] = state[: lengths[row]]
        done += len(rows)
        progress("encode items (frozen layers, once)", done, len(order))
    return {"hidden": hidden, "starts": starts, "checksum": _checksum(hidden, starts)}


@torch.no_grad()
def encode_items(encoder: TextEncoder, cache: HiddenCache) -> np.ndarray:
    """Encode every cached text with the current adapter: float32 [n, h], unit rows."""
    vectors = np.zeros((len(cache), encoder.dimension), dtype=np.float32)
    order = np.argsort(cache.lengths, kind="stable")

    def encoded(batch: slice) -> tuple[np.ndarray, np.ndarray]:
        hidden, mask = cache.batch(order[batch], encoder.device)
        return order[batch], encoder.upper(hidden, mask).float().cpu().numpy()

    for rows, found in text_batches(encoder.device).over(len(order), encoded):
        vectors[rows] = found
    return vectors
