"""Named tensors as one flat row, and adapters of a smaller rank inside one of the full rank (`common.ranks`)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from common.ranks import A, B, cut, rank_axis, widen

__all__ = ["A", "B", "Layout", "cut", "rank_axis", "widen"]


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
