"""BERT's forward pass in a dozen calls a layer: what `transformers` computes, without its modules.

A question is some ten tokens. For so few, finding masks, calling modules and wrapping their results takes a good part
of the time, and importing them takes 120 MB and two seconds. Nothing can be trained here: that is `TextEncoder`'s, and
a test holds the two together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch.nn import functional

from common.encoder.dense import Dense, dense
from common.encoder.lora import LowRank
from common.encoder.shape import (
    ADAPTABLE,
    ATTENDED,
    ATTENDED_NORM,
    GROWN,
    MATRICES,
    QKV,
    SHRUNK,
    SHRUNK_NORM,
    BertShape,
    layer_name,
)

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True, slots=True, eq=False)
class _Norm:
    """A layer norm over a row."""

    weight: torch.Tensor
    bias: torch.Tensor
    epsilon: float

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor], name: str, epsilon: float) -> "_Norm":
        return cls(tensors[f"{name}.weight"], tensors[f"{name}.bias"], epsilon)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(rows, self.weight.shape, self.weight, self.bias, self.epsilon)


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """A layer: what its tokens say of each other, then each token by itself, both added to what came in."""

    products: Mapping[str, Dense]
    attended_norm: _Norm
    shrunk_norm: _Norm
    heads: int

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor], number: int, shape: BertShape) -> "_Layer":
        name = layer_name(number)

        def stacked(parts: Sequence[str], leaf: str) -> torch.Tensor:
            found = [tensors[f"{name}.{part}.{leaf}"] for part in parts]
            return found[0] if len(found) == 1 else torch.cat(found)

        return cls(
            {
                product: dense(stacked(parts, "weight"), stacked(parts, "bias"), gelu=product == GROWN)
                for product, parts in MATRICES.items()
            },
            _Norm.of(tensors, f"{name}.{ATTENDED_NORM}", shape.layer_norm_eps),
            _Norm.of(tensors, f"{name}.{SHRUNK_NORM}", shape.layer_norm_eps),
            shape.num_attention_heads,
        )

    def run(
        self, rows: torch.Tensor, texts: int, seen: torch.Tensor | None, change: Mapping[str, LowRank | None]
    ) -> torch.Tensor:
        """Return [n * l, h] of [n * l, h], float32; `seen` is bool [n, 1, 1, l], None where none is padding."""

        def product(name: str, of: torch.Tensor) -> torch.Tensor:
            found, more = self.products[name](of), change[name]
            return found if more is None else more.add_to(found, of)

        width = rows.shape[1]
        split = product(QKV, rows).view(texts, -1, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        rows = self.attended_norm(product(ATTENDED, attended.transpose(1, 2).reshape(-1, width)) + rows)
        return self.shrunk_norm(product(SHRUNK, self.products[GROWN](rows)) + rows)


class PlainBert:
    """A BERT without a pooling layer, frozen, on the processor.

    Its embeddings stay where they lie, in the mapped file; its matrices are laid out anew (`dense`).

    Parameters
    ----------
    shape
        `is_plain`.
    tensors
        float32, as `BertShape.tensors` names them.
    """

    def __init__(self, shape: BertShape, tensors: Mapping[str, torch.Tensor]) -> None:
        self.shape = shape
        self._words = tensors["embeddings.word_embeddings.weight"]
        # a question is one sentence, so all of its tokens are of the first type
        types = tensors["embeddings.token_type_embeddings.weight"]
        self._positions = tensors["embeddings.position_embeddings.weight"] + types[0]
        self._norm = _Norm.of(tensors, "embeddings.LayerNorm", shape.layer_norm_eps)
        self._layers = [_Layer.of(tensors, number, shape) for number in range(shape.num_hidden_layers)]

    @classmethod
    def read(cls, folder: Path) -> "PlainBert | None":
        """Read a saved BERT; None where only the library can read it, or say what is wrong with it."""
        try:
            shape = msgspec.json.decode((folder / CONFIG).read_bytes(), type=BertShape)
            if not shape.is_plain or (folder / "adapter_config.json").exists():
                return None
            with safe_open(folder / WEIGHTS, framework="pt") as file:
                saved = {_name_today(name): name for name in file.keys()}
                tensors = {name: file.get_tensor(saved[name]).float() for name in shape.tensors()}
        except (OSError, KeyError, msgspec.DecodeError, SafetensorError):
            return None
        if any(tuple(tensors[name].shape) != wanted for name, wanted in shape.tensors().items()):
            return None
        return cls(shape, tensors)

    def hidden(
        self, token_ids: torch.Tensor, mask: torch.Tensor, change: Mapping[tuple[int, str], LowRank]
    ) -> torch.Tensor:
        """Run all layers: int64 [n, l] and bool [n, l] to float32 [n, l, h].

        Parameters
        ----------
        change
            What an adapter adds, by the number of the layer and the product's name in `ADAPTABLE`.
        """
        texts, longest = token_ids.shape
        embedded = functional.embedding(token_ids, self._words) + self._positions[:longest]
        rows = self._norm(embedded.view(texts * longest, -1))
        seen = None if bool(mask.all()) else mask[:, None, None, :]
        for number, layer in enumerate(self._layers):
            rows = layer.run(rows, texts, seen, {part: change.get((number, part)) for part in ADAPTABLE})
        return rows.view(texts, longest, -1)


def _name_today(name: str) -> str:
    """Return the library's name of a tensor that was saved under a head, or by the first BERT's names."""
    name = name.removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
