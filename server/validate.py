"""Replies are checked before any arithmetic; a bad one is quarantined with its reason and costs only itself."""

from collections.abc import Mapping

import numpy as np

from common.errors import UpdateRejected
from common.instructions import TrainRequest
from common.updates import AdapterUpdate

MAX_NORM = 1e3
"""Far beyond any honest update, noise included; what exceeds it is broken or hostile."""


def validate(update: AdapterUpdate, request: TrainRequest, like: Mapping[str, np.ndarray]) -> None:
    """Check one update against what was asked.

    Parameters
    ----------
    update
        As decoded.
    request
        What its node was asked.
    like
        The base adapter: shapes and dtypes.

    Raises
    ------
    UpdateRejected
        Naming the first thing that is wrong.
    """
    meta = update.meta
    for field, found, expected in (
        ("round", meta.round, request.round),
        ("base version", meta.base_version, request.base_version),
        ("strategy", meta.strategy, request.strategy),
    ):
        if found != expected:
            raise UpdateRejected(f"{field} {found!r}", expected=f"{expected!r}")
    if set(update.arrays) != set(request.trained):
        odd = sorted(set(update.arrays) ^ set(request.trained))[0]
        raise UpdateRejected(f"tensor {odd!r} is in only one of update and request", expected="the requested tensors")
    for name, array in update.arrays.items():
        if (array.shape, array.dtype) != (like[name].shape, like[name].dtype):
            raise UpdateRejected(
                f"tensor {name!r} is {array.dtype} {array.shape}", expected=f"{like[name].dtype} {like[name].shape}"
            )
        if not np.isfinite(array).all():
            raise UpdateRejected(f"tensor {name!r} has NaN or infinite elements", expected="finite numbers")
    if update.norm() > MAX_NORM:
        raise UpdateRejected(f"update of norm {update.norm():.3g}", expected=f"at most {MAX_NORM:g}")
    _validate_privacy(update, request)


def _validate_privacy(update: AdapterUpdate, request: TrainRequest) -> None:
    terms, meta = request.privacy, update.meta
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
