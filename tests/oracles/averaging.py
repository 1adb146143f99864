"""The obvious averages of adapter updates, in plain numpy float64."""

from collections.abc import Mapping, Sequence

import numpy as np

from common.updates import AdapterUpdate


def mean_slowly(updates: Sequence[AdapterUpdate], name: str) -> np.ndarray:
    """Return the uniform mean of one tensor."""
    mean: np.ndarray = np.mean([update.arrays[name].astype(np.float64) for update in updates], axis=0)
    return mean


def mean_product_slowly(
    base: Mapping[str, np.ndarray], updates: Sequence[AdapterUpdate], a_name: str, b_name: str
) -> np.ndarray:
    """Return the mean of B_i A_i over the clients: what an exact aggregation gives without a server optimiser."""
    products = []
    for update in updates:
        b = base[b_name].astype(np.float64) + update.arrays.get(b_name, 0.0)
        a = base[a_name].astype(np.float64) + update.arrays.get(a_name, 0.0)
        products.append(b @ a)
    mean: np.ndarray = np.mean(products, axis=0)
    return mean


def mean_over_holders_slowly(updates: Sequence[AdapterUpdate], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the mean of one tensor, element by element, over the updates that have the element; 0 without any."""
    mean = np.zeros(shape)
    for where in np.ndindex(*shape):
        held = [
            float(update.arrays[name][where])
            for update in updates
            if all(at < size for at, size in zip(where, update.arrays[name].shape, strict=True))
        ]
        mean[where] = sum(held) / len(held) if held else 0.0
    return mean
