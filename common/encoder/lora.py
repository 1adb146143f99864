"""A LoRA adapter without PEFT: which tensors it has, and what they add to the products of a plain BERT."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from common.encoder.shape import ADAPTABLE, MATRICES, BertShape, layer_name
from common.encoder.spec import EncoderSpec
from common.errors import EncoderError


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """What an adapter adds to a product: ``rows @ down @ up``.

    Parameters
    ----------
    down
        float32 [in, r].
    up
        float32 [r, out], LoRA's scale included.
    """

    down: torch.Tensor
    up: torch.Tensor

    @classmethod
    def stacked(cls, parts: Sequence[tuple[torch.Tensor, torch.Tensor] | None], width: int, scale: float) -> "LowRank":
        """Return that of a stack of matrices, each `width` wide, from LoRA's A and B of each; None adds nothing."""
        down = torch.cat([part[0] for part in parts if part is not None])
        up = down.new_zeros(len(down), width * len(parts))
        row = 0
        for number, part in enumerate(parts):
            if part is not None:
                rank = len(part[0])
                up[row : row + rank, number * width : (number + 1) * width] = part[1].T * scale
                row += rank
        return cls(down.T.contiguous(), up)

    def add_to(self, product: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Add to a product of the same rows, in place."""
        return product.addmm_(rows @ self.down, self.up)


def low_ranks(arrays: Mapping[str, np.ndarray], shape: BertShape, scale: float) -> dict[tuple[int, str], LowRank]:
    """Return what an adapter adds, by the number of the layer and the product's name in `ADAPTABLE`.

    Parameters
    ----------
    arrays
        Float32 tensors by their names in PEFT's file, as `adapter_shapes` has them.
    scale
        Of B times A.
    """
    tensors = {name: torch.from_numpy(np.array(array, dtype=np.float32)) for name, array in arrays.items()}
    found = {}
    for number in range(shape.num_hidden_layers):
        for product in ADAPTABLE:
            parts = MATRICES[product]
            names = [lora_names(number, part) for part in parts]
            pairs = [(tensors[a], tensors[b]) if a in tensors else None for a, b in names]
            if any(pair is not None for pair in pairs):
                found[number, product] = LowRank.stacked(pairs, shape.matrix(parts[0])[0], scale)
    return found


def lora_names(number: int, part: str) -> tuple[str, str]:
    """Return PEFT's names of the A and B beside a layer's matrix."""
    name = f"base_model.model.{layer_name(number)}.{part}"
    return f"{name}.lora_A.weight", f"{name}.lora_B.weight"


def adapts(spec: EncoderSpec, part: str) -> bool:
    """Tell whether the spec's adapter has tensors for this matrix of a layer."""
    return f".{part}".endswith(tuple(f".{target}" for target in spec.targets))


def adapter_shapes(spec: EncoderSpec, shape: BertShape) -> dict[str, tuple[int, ...]]:
    """Return the tensors of the spec's adapter on such a BERT and their shapes, as PEFT makes them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(shape.num_hidden_layers - spec.trained_layers, shape.num_hidden_layers):
        for part in (part for parts in MATRICES.values() for part in parts):
            if adapts(spec, part):
                (a, b), (out, width) = lora_names(number, part), shape.matrix(part)
                shapes |= {a: (spec.rank, width), b: (out, spec.rank)}
    return shapes


def check_adapter(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse an adapter that is not the model's, by the shapes of its tensors.

    Raises
    ------
    EncoderError
        When a tensor is missing, unknown, or of another shape, naming it.
    """
    if expected.keys() != found.keys():
        odd = sorted(expected.keys() ^ found.keys())[0]
        raise EncoderError(f"tensor {odd!r} is in only one of model and adapter", expected="the same tensors")
    for name, shape in found.items():
        if shape != expected[name]:
            raise EncoderError(f"tensor {name!r} has shape {shape}", expected=f"{expected[name]}")
