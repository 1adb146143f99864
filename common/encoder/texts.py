"""What every encoder of texts does around its layers: tokens, batches of like lengths, one row a text."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer

from common.encoder.device import Batches
from common.errors import EncoderError

VOCABULARIES = ("tokenizer.json", "vocab.txt")
ENCODE_BATCH, GPU_ENCODE_BATCH = 128, 1024
"""Texts a forward pass: few, so that a batch of similar lengths pads little; a GPU would wait for more of them."""


@contextmanager
def refusing_unreadable(folder: str) -> Iterator[None]:
    """Turn what goes wrong while weights or tokenizer of a folder are read into an EncoderError that names it."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise EncoderError(
            f"the weights or tokenizer in {folder} cannot be loaded ({type(error).__name__})",
            expected="a folder saved by `save_pretrained`",
            mend="leave out --encoder to use the default",
        ) from error


def load_tokenizer(folder: str, words: int) -> Any:
    """Return the tokenizer in a folder, for a BERT that has rows for so many words.

    Raises
    ------
    EncoderError
        When it cannot be read, or knows more words than that.
    """
    with refusing_unreadable(folder):
        if not any(Path(folder, name).is_file() for name in VOCABULARIES):
            raise FileNotFoundError(folder)  # transformers would make a tokenizer that knows no word
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if len(tokenizer) > words:
            raise ValueError(len(tokenizer))
    return tokenizer


def tokenize(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Return token ids for each text, cut to `max_tokens`; an empty text still has its two markers."""
    if not texts:
        return []
    cut = [text[: 16 * max_tokens] for text in texts]  # a token is hardly ever 16 characters
    ids: list[list[int]] = tokenizer(cut, truncation=True, max_length=max_tokens, add_special_tokens=True)["input_ids"]
    return ids


def text_batches(device: torch.device) -> Batches:
    """Return what cuts texts to encode into forward passes."""
    return Batches(GPU_ENCODE_BATCH if device.type == "cuda" else ENCODE_BATCH, "texts to encode")


def pad_tokens(token_ids: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad to the longest of the batch: int64 [n, l] ids (0 where padded) and a bool [n, l] mask."""
    lengths = np.array([len(ids) for ids in token_ids])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, dtype=np.int64)
    ids[mask] = np.fromiter(chain.from_iterable(token_ids), np.int64, int(lengths.sum()))
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def mean_of_tokens(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Pool: float32 [n, l, h] and bool [n, l] to unit rows, float32 [n, h]."""
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    pooled = (hidden * weights).sum(1) / weights.sum(1).clamp_min(1.0)
    return torch.nn.functional.normalize(pooled, dim=-1)


def encode_by_length(
    token_ids: Sequence[Sequence[int]],
    device: torch.device,
    dimension: int,
    rows_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> np.ndarray:
    """Encode texts in batches of like lengths: float32 [n, h], in the order of the texts.

    Parameters
    ----------
    token_ids
        What `tokenize` returned.
    dimension
        h.
    rows_of
        Padded ids and mask, as of `pad_tokens`, to rows.
    """
    vectors = np.zeros((len(token_ids), dimension), dtype=np.float32)
    order = sorted(range(len(token_ids)), key=lambda i: len(token_ids[i]))

    def encoded(batch: slice) -> tuple[list[int], np.ndarray]:
        rows = order[batch]
        ids, mask = pad_tokens([token_ids[i] for i in rows], device)
        return rows, rows_of(ids, mask).float().cpu().numpy()

    for rows, found in text_batches(device).over(len(order), encoded):
        vectors[rows] = found
    return vectors
