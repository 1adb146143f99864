"""What a run starts from when it is not a new adapter: a published version, what it claims, and where the run is kept.

A store may hold several runs, one after the other. The first one's rounds lie in ``rounds/``; those of a run that
starts from a version lie in a folder of ``rounds/`` with the run's name, and ``rounds/newest-run`` names the one begun
last.
"""

from dataclasses import replace
from pathlib import Path

import msgspec

from common.errors import ArtifactCorrupt, PrivacyError
from common.ids import arrays_sha256
from common.instructions import PrivacyTerms
from common.manifests import Manifest
from common.store import write_atomic
from server.artifact import ADAPTER_WEIGHTS, STRATEGY_STATE
from server.plan import RunPlan, Start
from server.registry import Registry
from server.release import number_of
from server.round_store import RUN_NAME, RunState
from server.store_info import STORE_NAME

NEWEST_RUN = "newest-run"


class _Described(msgspec.Struct):
    """What of a run's description says where it started."""

    start: Start | None = None


def start_from(source: Registry, version: str, target: Path, data: str, privacy: PrivacyTerms) -> Start:
    """Return the start of a run from a version.

    Parameters
    ----------
    source
        The store that holds it.
    version
        A version, or the name of a pointer ("current").
    target, data
        The store that the run will publish to, perhaps the same, perhaps not made yet; and its data set.
    privacy
        What the run promises.

    Raises
    ------
    VersionNotFound
        When there is no such version.
    PrivacyError
        When the version's own claim does not bear what the run promises.
    """
    manifest = source.manifest(version)
    elsewhere = source.root.resolve() != target.resolve()
    epsilon = None
    if privacy.unit != "off":
        epsilon = _claimed(manifest, privacy)
        if elsewhere and source.info.data == data:
            raise PrivacyError(
                f"a start from another store of the same data set {data!r}",
                expected="the store of that version: its ledgers know what these people have spent already",
                consequence="nothing is trained",
                mend=f"go on in {source.root}, or use --privacy off",
            )
    names = Registry.open(target).names() if (target / STORE_NAME).exists() else ()
    latest = max(map(number_of, names), default=0)
    return Start(manifest.version, str(manifest.details.get("adapter_sha256", "")), latest, epsilon, elsewhere)


def _claimed(manifest: Manifest, privacy: PrivacyTerms) -> float:
    """Return the epsilon that a version claims under the run's own unit and delta."""
    claim = manifest.privacy
    if claim is None or claim.epsilon is None or (claim.unit, claim.delta) != (privacy.unit, privacy.delta):
        found = "none" if claim is None or claim.epsilon is None else f"unit {claim.unit!r} at delta {claim.delta}"
        raise PrivacyError(
            f"version {manifest.version} with the guarantee: {found}",
            expected=f"unit {privacy.unit!r} at delta {privacy.delta}: what is made of it cannot promise more",
            consequence="nothing is trained",
            mend="start from a version with the same terms, or use --privacy off",
        )
    return claim.epsilon


def first_state(source: Registry, start: Start, strategy: str) -> RunState:
    """Return the state before the first round: the version's adapter, and the strategy's state if it is the same one.

    Raises
    ------
    ArtifactCorrupt
        When the version is damaged.
    """
    adapter = source.arrays(start.version, ADAPTER_WEIGHTS)
    if arrays_sha256(adapter.items()) != start.adapter_sha256:
        raise ArtifactCorrupt(
            f"the adapter of {start.version} has hash {arrays_sha256(adapter.items())[:12]}",
            expected=start.adapter_sha256[:12],
            consequence="the run does not start from it",
        )
    manifest = source.manifest(start.version)
    same = manifest.details.get("strategy") == strategy and STRATEGY_STATE in manifest.files
    return RunState(0, adapter, source.arrays(start.version, STRATEGY_STATE) if same else {})


def run_folder(rounds: Path, plan: RunPlan) -> Path:
    """Return where a run keeps its rounds."""
    return rounds if plan.start is None else rounds / plan.run


def begin(rounds: Path, plan: RunPlan) -> None:
    """Let the run be the one that is gone on with."""
    if plan.start is not None:
        write_atomic(rounds / NEWEST_RUN, plan.run.encode() + b"\n")


def newest_start(rounds: Path) -> Start | None:
    """Return where the run begun last started, or None when that is the store's first one.

    Raises
    ------
    ArtifactCorrupt
        When its description is damaged.
    """
    try:
        name = (rounds / NEWEST_RUN).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactCorrupt(
            f"{rounds / NEWEST_RUN} does not name a run ({error})", mend=f"delete it to go on with the run in {rounds}"
        ) from error
    return _described_start(rounds / name / RUN_NAME)


def _described_start(path: Path) -> Start | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Described).start
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise ArtifactCorrupt(
            f"{path} does not describe a run ({error})", mend=f"delete {path.parent} to forget that run"
        ) from error


def started(plan: RunPlan, start: Start, rounds: Path) -> RunPlan:
    """Return the plan of the same run from a start; its name tells it from the same run from another.

    One that was begun before keeps the numbers of its versions, wherever the store has got to since.
    """
    begun = replace(plan, run=f"{plan.run}-from-{start.adapter_sha256[:12]}", start=start)
    return replace(begun, start=_described_start(run_folder(rounds, begun) / RUN_NAME) or start)
