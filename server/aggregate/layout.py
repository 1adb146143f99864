"""Named tensors as one flat row, and adapters of a smaller rank inside one of the full rank.

A client of rank r_i holds the first r_i rows of every A and the first r_i columns of every B. After FedSVD these belong
to the largest singular values, so what it holds is the best adapter of its rank. (Heterogeneous ranks as in FlexLoRA,
Bai et al., 2024, arXiv 2402.11505, without its truncation after every round.)
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from common.errors import InvalidSetting, UpdateRejected

A, B = "lora_A", "lora_B"


def rank_axis(name: str) -> int | None:
    """Return the axis of a tensor that counts the rank: 1 for B [out, r], 0 for A [r, in], None for any other."""
    return 1 if B in name else 0 if A in name else None


def cut(arrays: Mapping[str, np.ndarray], rank: int) -> dict[str, np.ndarray]:
    """Return the adapter that a client of a smaller rank holds; tensors other than A and B stay whole.

    Raises
    ------
    InvalidSetting
        When the adapter has no such rank.
    """
    held = dict(arrays)
    for name, array in arrays.items():
        if (axis := rank_axis(name)) is None:
            continue
        if not 1 <= rank <= array.shape[axis]:
            raise InvalidSetting(f"rank {rank} of tensor {name!r} {array.shape}", expected=f"1 to {array.shape[axis]}")
        held[name] = np.ascontiguousarray(array[:rank] if axis == 0 else array[:, :rank])
    return held


def widen(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a tensor of a smaller rank with zeros up to the full `shape`; one of full rank as it is.

    Raises
    ------
    UpdateRejected
        When more than the rank differs.
    """
    if array.shape == shape:
        return array
    axis = rank_axis(name)
    if axis is not None and array.ndim == len(shape) == 2:
        missing = shape[axis] - array.shape[axis]
        if missing > 0 and array.shape[1 - axis] == shape[1 - axis]:
            return np.pad(array, [(0, missing if each == axis else 0) for each in range(2)])
    raise UpdateRejected(
        f"tensor {name!r} is {array.shape}", expected=f"{shape}, or that with a smaller rank", mend="use one adapter"
    )


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each tensor lies in a flat row.

    Parameters
    ----------
    shapes
        Tensor name to shape, in the order of the row.
    """

    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, like: Mapping[str, torch.Tensor], names: Iterable[str]) -> "Layout":
        """Return the layout of some of the tensors, sorted by name."""
        return cls({name: tuple(like[name].shape) for name in sorted(names)})

    @property
    def size(self) -> int:
        """Elements of a row."""
        return int(sum(np.prod(shape, dtype=np.int64) for shape in self.shapes.values()))

    def fill(self, row: "np.ndarray[Any, Any]", arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Write the arrays into a row [size], zeros where one has a smaller rank.

        Returns
        -------
        dict
            Tensor name to the rank it came with, for those that came with a smaller one.
        """
        narrow: dict[str, int] = {}
        pieces = []
        for name, shape in self.shapes.items():
            array = arrays[name]
            if array.shape != shape:
                axis = rank_axis(name)
                array = widen(name, array, shape)
                narrow[name] = arrays[name].shape[axis or 0]
            pieces.append(array.reshape(-1))
        if pieces:
            np.concatenate(pieces, out=row, casting="same_kind")
        return narrow

    def split(self, row: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the tensors of a row [size], as views."""
        sizes = [int(np.prod(shape, dtype=np.int64)) for shape in self.shapes.values()]
        return {
            name: part.reshape(shape)
            for (name, shape), part in zip(self.shapes.items(), torch.split(row, sizes), strict=True)
        }
