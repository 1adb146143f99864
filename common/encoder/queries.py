"""The encoder of questions: the vectors of `TextEncoder.encode`, sooner and in less memory, and no training."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from common.encoder.device import resolve_device
from common.encoder.lora import LowRank, adapter_shapes, adapts, check_adapter, low_ranks
from common.encoder.plain import PlainBert
from common.encoder.shape import GROWN
from common.encoder.spec import EncoderSpec
from common.encoder.texts import encode_by_length, load_tokenizer, mean_of_tokens, tokenize

if TYPE_CHECKING:
    from common.encoder.adapter import TextEncoder

PROCESSOR = torch.device("cpu")


class PlainEncoder:
    """A plain BERT, its tokenizer, and an adapter beside its matrices.

    Another adapter costs nothing: it is not multiplied into the matrices, it adds its two small products to theirs.

    Parameters
    ----------
    spec
        Which BERT, which adapter.
    bert
        That BERT.
    """

    def __init__(self, spec: EncoderSpec, bert: PlainBert) -> None:
        self.spec = spec
        self._bert = bert
        self._tokenizer = load_tokenizer(spec.path, bert.shape.vocab_size)
        self._max_tokens = min(spec.max_tokens, bert.shape.max_position_embeddings)
        self._shapes = adapter_shapes(spec, bert.shape)
        self._change: dict[tuple[int, str], LowRank] = {}

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the base weights."""
        return self.spec.weights_sha256()

    def set_adapter(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take an adapter, with the names of PEFT's file.

        Raises
        ------
        EncoderError
            When a tensor is missing, unknown, or of another shape, naming it; the one before stays.
        """
        check_adapter({name: array.shape for name, array in arrays.items()}, self._shapes)
        self._change = low_ranks(arrays, self._bert.shape, self.spec.alpha / self.spec.rank)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Encode texts with the current adapter, none at first: float32 [n, h], unit rows."""
        return encode_by_length(
            tokenize(self._tokenizer, texts, self._max_tokens),
            PROCESSOR,
            self._bert.shape.hidden_size,
            lambda ids, mask: mean_of_tokens(self._bert.hidden(ids, mask, self._change), mask),
        )


def load_for_queries(spec: EncoderSpec, device: str = "cpu") -> "PlainEncoder | TextEncoder":
    """Return the encoder of questions: a plain one on the processor, the library's elsewhere or where it must be.

    Raises
    ------
    EncoderError
        When weights or tokenizer cannot be read.
    """
    here = resolve_device(device).type == PROCESSOR.type
    if here and not adapts(spec, GROWN) and (bert := PlainBert.read(Path(spec.path))) is not None:
        return PlainEncoder(spec, bert)
    # not above: it brings transformers' models and PEFT, 120 MB
    from common.encoder.adapter import TextEncoder

    return TextEncoder.load(spec, device)
