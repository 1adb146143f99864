"""Adapters of a smaller rank inside one of the full rank.

A client of rank r_i holds the first r_i rows of every A and the first r_i columns of every B. After FedSVD these belong
to the largest singular values, so what it holds is the best adapter of its rank. (Heterogeneous ranks as in FlexLoRA,
Bai et al., 2024, arXiv 2402.11505, without its truncation after every round.)
"""

from collections.abc import Mapping

import numpy as np

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


def ranks_of(shapes: Mapping[str, tuple[int, ...]]) -> frozenset[int]:
    """Return the ranks of all A and B in an adapter; one, unless it is made of parts that do not fit."""
    return frozenset(shape[axis] for name, shape in shapes.items() if (axis := rank_axis(name)) is not None)
