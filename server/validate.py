"""Replies are checked before any arithmetic; a bad one is quarantined with its reason and costs only itself."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from common.errors import UpdateRejected
from common.instructions import TrainRequest
from common.quantise import dequantise
from common.ranks import rank_axis, ranks_of
from common.updates import AdapterUpdate, UpdateMeta
from server.aggregate import bears_ranks

MAX_NORM = 1e3
"""Far beyond any honest update, noise included; what exceeds it is broken or hostile. Of a sum over records, for each
expected record."""


def validate(
    update: AdapterUpdate, request: TrainRequest, like: Mapping[str, np.ndarray], *, smaller_ranks: bool = False
) -> None:
    """Check one update against what was asked.

    Parameters
    ----------
    update
        As decoded.
    request
        What its node was asked.
    like
        The base adapter: shapes and dtypes.
    smaller_ranks
        Let an update of one smaller rank pass where each update counts by itself under a strategy that averages: a node
        decides for itself how much of the adapter it trains.

    Raises
    ------
    UpdateRejected
        Naming the first thing that is wrong.
    """
    validate_meta(update.meta, request)
    _validate_arrays(update, request, _shapes_of(update, request, like, smaller_ranks), like)


def opened(update: AdapterUpdate, request: TrainRequest) -> AdapterUpdate:
    """Return an update as it came with its numbers in float32, where they were asked for in 8 bits.

    Raises
    ------
    UpdateRejected
        When they are not what was asked for.
    """
    return update if request.uplink == "float32" else replace(update, arrays=dequantise(update.arrays))


def validate_meta(meta: UpdateMeta, request: TrainRequest) -> None:
    """Check the public side of an update; under secure aggregation there is no more to be checked.

    Raises
    ------
    UpdateRejected
        Naming the first thing that is wrong.
    """
    for field, found, expected in (
        ("round", meta.round, request.round),
        ("base version", meta.base_version, request.base_version),
        ("strategy", meta.strategy, request.strategy),
    ):
        if found != expected:
            raise UpdateRejected(f"{field} {found!r}", expected=f"{expected!r}")
    if not 0 < meta.examples < math.inf:
        raise UpdateRejected(f"{meta.examples} expected records", expected="a finite number above 0")
    _validate_privacy(meta, request)


def _validate_arrays(
    update: AdapterUpdate,
    request: TrainRequest,
    shapes: Mapping[str, tuple[int, ...]],
    like: Mapping[str, np.ndarray],
) -> None:
    if set(update.arrays) != set(request.trained):
        odd = sorted(set(update.arrays) ^ set(request.trained))[0]
        raise UpdateRejected(f"tensor {odd!r} is in only one of update and request", expected="the requested tensors")
    for name, array in update.arrays.items():
        if (array.shape, array.dtype) != (shapes[name], like[name].dtype):
            raise UpdateRejected(
                f"tensor {name!r} is {array.dtype} {array.shape}", expected=f"{like[name].dtype} {shapes[name]}"
            )
        if not np.isfinite(array).all():
            raise UpdateRejected(f"tensor {name!r} has NaN or infinite elements", expected="finite numbers")
    most = MAX_NORM * max(1.0, update.meta.examples) if request.privacy.undivided else MAX_NORM
    if update.norm() > most:
        raise UpdateRejected(f"update of norm {update.norm():.3g}", expected=f"at most {most:g}")


def _shapes_of(
    update: AdapterUpdate, request: TrainRequest, like: Mapping[str, np.ndarray], smaller_ranks: bool
) -> dict[str, tuple[int, ...]]:
    """Return the shapes to expect: the adapter's, or those of the update's own rank where that may be smaller.

    Where only a sum is known it would be divided by nodes that hold no such column, so there it may not.
    """
    shapes = {name: array.shape for name, array in like.items()}
    ranks = ranks_of({name: array.shape for name, array in update.arrays.items() if array.ndim == 2})
    alone = request.privacy.noise == "local" and bears_ranks(request.strategy)
    if not smaller_ranks or not alone or len(ranks) != 1:
        return shapes
    (rank,) = ranks
    return {
        name: shape if axis is None or not 1 <= rank <= shape[axis] else (*shape[:axis], rank, *shape[axis + 1 :])
        for name, shape in shapes.items()
        for axis in [rank_axis(name)]
    }


def _validate_privacy(meta: UpdateMeta, request: TrainRequest) -> None:
    terms = request.privacy
    if terms.unit == "off":
        return
    if meta.privacy is None or meta.epsilon is None:
        raise UpdateRejected("an update without a privacy claim", expected=f"unit {terms.unit!r}")
    if (meta.privacy.unit, meta.privacy.delta) != (terms.unit, terms.delta):
        raise UpdateRejected(
            f"a claim of unit {meta.privacy.unit!r} at delta {meta.privacy.delta}",
            expected=f"{terms.unit!r} at {terms.delta}",
        )
    if not 0 < meta.epsilon <= terms.epsilon:
        raise UpdateRejected(f"a claimed epsilon of {meta.epsilon:.4g}", expected=f"above 0, at most {terms.epsilon:g}")
