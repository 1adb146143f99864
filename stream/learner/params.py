"""A learner's kind and settings inside its state: the same ones are needed to go on."""

from collections.abc import Mapping
from typing import Any

import msgspec

from common.errors import CheckpointMismatch

SERVED = {"MF": "mf", "Blend": "blend", "PointwiseMF": "pointwise"}
"""Kinds that the command line can learn with, and what it calls them."""


def params_json(kind: str, params: Mapping[str, Any]) -> bytes:
    """Return kind and settings as JSON, in the order of their names."""
    return msgspec.json.encode({"kind": kind, **params}, order="sorted")


def check_params(found: bytes, expected: bytes) -> None:
    """Refuse a state that was made by another kind of learner or with other settings.

    Raises
    ------
    CheckpointMismatch
        Naming the kind, or each setting that differs.
    """
    if found == expected:
        return
    theirs, ours = _decoded(found), msgspec.json.decode(expected)
    if theirs.get("kind") != ours["kind"]:
        kind = theirs.get("kind")
        going_on = (
            f"anabranch stream learn --learner {SERVED[str(kind)]} goes on with it; or " if kind in SERVED else ""
        )
        raise CheckpointMismatch(
            f"the checkpoint is of a learner of kind {kind!r}",
            expected=f"kind {ours['kind']!r}",
            mend=f"{going_on}use a new store",
        )
    apart = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    raise CheckpointMismatch(
        f"the checkpoint is of a learner with {_shown(theirs, apart)}",
        expected=_shown(ours, apart),
        mend="use the settings it was made with, or a new store",
    )


def _decoded(raw: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        found = None
    return found if isinstance(found, dict) else {"kind": None}


def _shown(params: Mapping[str, Any], names: list[str]) -> str:
    shown = {name: params[name] for name in names if name in params}
    return msgspec.json.encode(shown).decode() if shown else "no such setting"
