"""Which versions a store can do without, and their removal beside readers and publishers."""

from collections.abc import Mapping
from dataclasses import dataclass

from common.errors import InvalidSetting
from server.registry import Registry

FRESH = 3_600_000
"""Milliseconds: a version this young that nothing was made from yet may be about to get a name, whatever its rank by
age; its publisher's clock may be behind."""
GRACE = 24 * 3_600_000
"""Milliseconds: what a publisher left behind is taken for dead after this long."""


@dataclass(frozen=True, slots=True)
class Retention:
    """What would be kept and what removed.

    Parameters
    ----------
    kept
        Version to the reason.
    removed
        Versions, oldest first.
    """

    kept: Mapping[str, str]
    removed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Collected:
    """What was removed.

    Parameters
    ----------
    removed
        Versions, oldest first.
    freed
        Bytes that they took.
    kept
        Version to the reason; a version that was taken up meanwhile is among them.
    leftovers
        Pieces of dead publishers that were removed.
    """

    removed: tuple[str, ...]
    freed: int
    kept: Mapping[str, str]
    leftovers: int


def plan_retention(registry: Registry, keep: int, now: int) -> Retention:
    """Decide what to keep: what a name stands for, the newest, and the parents of these, so that each can go back.

    A version whose manifest is damaged is kept: what it was made of, and when, is unknown.

    Parameters
    ----------
    keep
        How many of the newest versions; at least one, which is what a publisher builds upon.
    now
        Milliseconds since the epoch.

    Raises
    ------
    InvalidSetting
        When `keep` is less than 1.
    """
    if keep < 1:
        raise InvalidSetting(f"keep = {keep}", expected="1 or more: the newest version is what the next is made from")
    whole, damaged = registry.examine()
    kept = dict.fromkeys(damaged, "damaged")
    by_name = {manifest.version: manifest for manifest in whole}
    grown = {parent for manifest in whole for parent in manifest.parents}
    kept |= {name: "fresh" for name, made in by_name.items() if name not in grown and made.created_at > now - FRESH}
    for manifest in whole[-keep:]:
        kept[manifest.version] = "among the newest"
    # the pointers last: a version that came meanwhile is not in the list, and so is safe
    for pointer, version in registry.pointers().items():
        if version in by_name or version in kept:
            kept[version] = f"{pointer} stands for it"
    for child in [by_name[name] for name in kept if name in by_name]:
        for parent in child.parents:
            if parent in by_name:
                kept.setdefault(parent, f"parent of {child.version}")
    return Retention(kept, tuple(manifest.version for manifest in whole if manifest.version not in kept))


def collect(registry: Registry, keep: int, now: int) -> Collected:
    """Remove what `plan_retention` does not keep, and what publishers that died more than a day ago left behind.

    Whoever reads a version that goes finds files missing and keeps what they have; a version that is pointed at
    meanwhile stays.

    Parameters
    ----------
    keep
        How many of the newest versions to keep.
    now
        Milliseconds since the epoch.
    """
    plan = plan_retention(registry, keep, now)
    kept, removed, freed = dict(plan.kept), [], 0
    for version in plan.removed:
        size = registry.storage.size(version)
        if registry.storage.delete(version):
            removed.append(version)
            freed += size
        elif registry.storage.has(version):
            kept[version] = "taken up meanwhile"
    return Collected(tuple(removed), freed, kept, registry.storage.sweep(now - GRACE))
