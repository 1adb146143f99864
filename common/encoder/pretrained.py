"""Reading a saved BERT and its tokenizer, whole or not at all, without a word on the terminal."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import BertModel
from transformers.utils.logging import EmptyTqdm, set_tqdm_hook

from common.encoder.texts import load_tokenizer, refusing_unreadable
from common.errors import EncoderError

_REPORTING = logging.getLogger("transformers.modeling_utils")


def load_bert(folder: str) -> tuple[Any, Any]:
    """Return the BERT in a folder, float32 and without its pooling layer, and its tokenizer.

    Raises
    ------
    EncoderError
        When one of them cannot be read, or a tensor is missing: transformers would draw it at random.
    """
    with refusing_unreadable(folder), _quiet():
        bert, found = BertModel.from_pretrained(
            folder, add_pooling_layer=False, local_files_only=True, dtype="float32", output_loading_info=True
        )
    tokenizer = load_tokenizer(folder, bert.config.vocab_size)
    if found["missing_keys"]:
        raise EncoderError(
            f"the weights in {folder} lack {min(found['missing_keys'])!r}",
            expected=f"all tensors of a BERT ({len(found['missing_keys'])} are missing)",
            consequence="nothing is encoded with made-up weights",
            mend="save the whole model with `save_pretrained`",
        )
    return bert, tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from drawing a bar and a table on stderr; `load_bert` checks what the table would say."""

    def unseen(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    before = set_tqdm_hook(lambda _factory, args, _named: EmptyTqdm(*args))
    _REPORTING.addFilter(unseen)
    try:
        yield
    finally:
        _REPORTING.removeFilter(unseen)
        set_tqdm_hook(before)
