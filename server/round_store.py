"""The rounds of a run on disk: what is kept after each, and the refusal to go on with another run's."""

import shutil
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path

import msgspec
import numpy as np

from common.errors import ArtifactCorrupt, StoreMismatch
from common.ids import arrays_sha256
from common.instructions import Objective, PrivacyTerms
from common.manifests import Manifest
from common.privacy import PrivacyClaim
from common.store import pack_arrays, publish_folder, unpack_arrays, verify_folder, write_atomic
from server.intake import RoundRecord
from server.plan import RunPlan, Start
from server.underway import BASES_NAME, ERRANDS_NAME, Underway

KEEP_ROUNDS = 2
RUN_NAME = "run.json"


@dataclass(frozen=True, slots=True)
class RunState:
    """Where a run stands.

    Parameters
    ----------
    round
        Rounds done.
    adapter, strategy_state
        Tensors by name.
    history
        One record a round.
    underway
        What a run without rounds has begun and not used yet.
    """

    round: int
    adapter: Mapping[str, np.ndarray]
    strategy_state: Mapping[str, np.ndarray]
    history: tuple[RoundRecord, ...] = ()
    underway: Underway | None = None

    @property
    def adapter_sha256(self) -> str:
        """Hash of the adapter's tensors."""
        return arrays_sha256(self.adapter.items())

    def claim(self, privacy: PrivacyTerms, start: Start | None = None) -> PrivacyClaim:
        """Return the guarantee over all rounds so far: the largest epsilon that any client ever reported.

        A client that took part in what the run started from, and not since, reported it there: never less than that.
        """
        if privacy.unit == "off":
            return PrivacyClaim("off", None, None, None, "none")
        spent = [record.epsilon for record in self.history if record.epsilon is not None]
        spent += [start.epsilon] if start is not None and start.epsilon is not None else []
        return PrivacyClaim(privacy.unit, max(spent, default=0.0), privacy.delta, privacy.epsilon, "prv")


class RoundStore:
    """The rounds of one run on disk.

    Parameters
    ----------
    folder
        ``rounds/`` of the store.
    plan
        The run; a folder with rounds of another one is refused.

    Raises
    ------
    StoreMismatch
        When the folder holds another run, naming the first setting that differs.
    """

    def __init__(self, folder: Path, plan: RunPlan) -> None:
        self._folder = folder
        path = folder / RUN_NAME
        wanted = msgspec.json.encode(plan)
        if path.exists() and any(folder.glob("round-*")):
            _refuse_other_run(_read_plan(path), msgspec.json.decode(wanted), folder)
        else:
            write_atomic(path, wanted)

    def latest(self) -> RunState | None:
        """Return the state after the newest whole round, or None before the first.

        Raises
        ------
        ArtifactCorrupt
            When a file of that round is damaged.
        """
        for folder in sorted(self._folder.glob("round-*"), reverse=True):
            try:
                manifest = verify_folder(folder)
            except ArtifactCorrupt as error:
                raise ArtifactCorrupt(
                    error.found,
                    expected=error.expected,
                    consequence="the run does not go on from it",
                    mend=f"delete {folder} to go on from the round before",
                ) from error
            return RunState(
                round=int(manifest.details["round"]),
                adapter=_read_arrays(folder / "adapter.safetensors"),
                strategy_state=_read_arrays(folder / "strategy.safetensors"),
                history=msgspec.json.decode((folder / "history.json").read_bytes(), type=tuple[RoundRecord, ...]),
                underway=_read_underway(folder),
            )
        return None

    def save(self, state: RunState, created_at: int) -> None:
        """Write the state after a round as one artifact and forget all but the last two."""
        files = {
            "adapter.safetensors": pack_arrays(state.adapter),
            "strategy.safetensors": pack_arrays(state.strategy_state),
            "history.json": msgspec.json.encode(state.history),
            **({} if state.underway is None else state.underway.files()),
        }
        name = f"round-{state.round:06d}"
        publish_folder(
            self._folder / name, files, Manifest("round", name, (), created_at, details={"round": state.round})
        )
        for old in sorted(self._folder.glob("round-*"))[:-KEEP_ROUNDS]:
            shutil.rmtree(old)


def _read_plan(path: Path) -> dict[str, object]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ArtifactCorrupt(
            f"{path} does not describe a run ({error})",
            consequence="nothing was changed",
            mend=f"restore it from a copy, or delete {path.parent} to start again",
        ) from error


def _with_defaults(found: dict[str, object]) -> dict[str, object]:
    """Return a plan, of an older program perhaps, with what that did not know yet: defaults, which change nothing."""
    known = {each.name: each.default for each in fields(RunPlan) if each.default is not MISSING}
    usual, goal = msgspec.json.decode(msgspec.json.encode(known)), found.get("objective")
    return {**usual, **found, **({"objective": {**asdict(Objective()), **goal}} if isinstance(goal, dict) else {})}


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    return unpack_arrays(path.read_bytes(), str(path))


def _read_underway(folder: Path) -> Underway | None:
    if not (folder / ERRANDS_NAME).exists():
        return None
    return Underway.read((folder / ERRANDS_NAME).read_bytes(), (folder / BASES_NAME).read_bytes(), str(folder))


def _refuse_other_run(found: dict[str, object], wanted: dict[str, object], folder: Path) -> None:
    found = _with_defaults(found)
    # the run's name is made of other settings, so it says least about what differs
    for name in sorted(wanted, key=lambda name: name == "run"):
        if name != "rounds" and found.get(name) != wanted[name]:
            raise StoreMismatch(
                f"{folder} holds a run with {name}={found.get(name)!r}",
                expected=f"{wanted[name]!r}",
                consequence="nothing was changed",
                mend="use the same settings to go on, or another --store",
            )
