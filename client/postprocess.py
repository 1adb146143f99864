"""Between training and the wire, where a node's whole update is the unit: bound it, and noise it.

Clipping a whole update instead of a record's gradient protects everything that a node holds (McMahan et al., 2018,
arXiv 1710.06963), however many local steps it took.
"""

from collections.abc import Mapping

import numpy as np

from common.ids import rng_for


def clip_whole(arrays: Mapping[str, np.ndarray], clip: float) -> dict[str, np.ndarray]:
    """Return the arrays, float64, scaled down to a Euclidean norm of at most `clip` over all of them.

    An update with a NaN or infinite element becomes zero: a node may say nothing, but never everything. A zero update
    stays zero.
    """
    whole = {name: np.asarray(array, dtype=np.float64) for name, array in arrays.items()}
    if not all(np.isfinite(array).all() for array in whole.values()):
        return {name: np.zeros_like(array) for name, array in whole.items()}
    norm = float(np.sqrt(sum(np.square(array).sum() for array in whole.values())))
    return {name: array * min(1.0, clip / norm) if norm > 0 else array for name, array in whole.items()}


def add_noise(arrays: Mapping[str, np.ndarray], deviation: float, *seed: str | int) -> dict[str, np.ndarray]:
    """Return the arrays, float32, with Gaussian noise of a standard deviation; the same seed gives the same noise."""
    rng = rng_for("whole noise", *seed)
    noised = {}
    for name in sorted(arrays):
        noise = deviation * rng.standard_normal(arrays[name].shape)
        noised[name] = (arrays[name] + noise).astype(np.float32)
    return noised
