"""Where a run may start, what it then claims, and which run is gone on with."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.encoder.adapter import initial_adapter
from common.errors import ArtifactCorrupt, InvalidSetting, PrivacyError, VersionNotFound
from common.ids import arrays_sha256
from common.instructions import PrivacyTerms
from common.items import Catalogue, Item
from common.manifests import Manifest
from common.privacy import PrivacyClaim
from common.store import pack_arrays
from server.artifact import ADAPTER_WEIGHTS, STRATEGY_STATE
from server.plan import Start
from server.registry import CURRENT, Registry
from server.release import number_of
from server.round_store import RoundStore
from server.starts import begin, first_state, newest_start, run_folder, start_from, started
from server.store_info import StoreInfo
from tests.server.test_rounds import OFF, SHAPES, TERMS, plan_of

ADAPTER = initial_adapter(SHAPES, 3)
STATE = {"step": np.array(4.0)}
CLAIM = PrivacyClaim(TERMS.unit, 3.5, TERMS.delta, 8.0, "prv")


def make_store(folder: Path, data: str = "x", claim: PrivacyClaim | None = CLAIM, **details: object) -> Registry:
    """Make a store with version v000007, current, of strategy fedsvd."""
    registry = Registry.create(folder, StoreInfo("tiny", "sha", data, 1), Catalogue([Item("i", "t", "t")]))
    told = {"adapter_sha256": arrays_sha256(ADAPTER.items()), "strategy": "fedsvd", **details}
    files = {ADAPTER_WEIGHTS: pack_arrays(ADAPTER), STRATEGY_STATE: pack_arrays(STATE)}
    manifest = Manifest("adapter", "v000007", (), 1, "tiny", "sha", privacy=claim, details=told)
    registry.publish(files, manifest)
    registry.point(CURRENT, "v000007")
    return registry


def test_a_start_names_the_version_and_what_it_claims(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    expected = Start("v000007", arrays_sha256(ADAPTER.items()), 7, 3.5, False)
    assert start_from(store, CURRENT, store.root, "x", TERMS) == expected
    assert start_from(store, "v000007", store.root, "x", TERMS) == expected
    assert start_from(store, CURRENT, store.root, "x", OFF) == replace(expected, epsilon=None)
    with pytest.raises(VersionNotFound):
        start_from(store, "v000001", store.root, "x", TERMS)


@pytest.mark.parametrize(
    "claim",
    [
        None,
        PrivacyClaim("off", None, None, None, "none"),
        replace(CLAIM, unit="example"),
        replace(CLAIM, delta=TERMS.delta / 2),
    ],
)
def test_no_run_promises_more_than_what_it_is_made_of(tmp_path: Path, claim: PrivacyClaim | None) -> None:
    store = make_store(tmp_path, claim=claim)
    with pytest.raises(PrivacyError, match="cannot promise more"):
        start_from(store, CURRENT, store.root, "x", TERMS)
    assert start_from(store, CURRENT, store.root, "x", OFF).epsilon is None


def test_from_another_store_only_over_other_people(tmp_path: Path) -> None:
    source, same = make_store(tmp_path / "a"), make_store(tmp_path / "b")
    with pytest.raises(PrivacyError, match="another store of the same data set"):
        start_from(source, CURRENT, same.root, "x", TERMS)
    assert start_from(source, CURRENT, same.root, "x", OFF).elsewhere
    other = make_store(tmp_path / "c", data="y")
    start = start_from(source, CURRENT, other.root, "y", TERMS)
    assert (start.elsewhere, start.epsilon, start.number) == (True, 3.5, 7)
    assert start_from(source, CURRENT, tmp_path / "new", "y", TERMS).number == 0


def test_the_strategys_state_goes_along_with_the_same_strategy_alone(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    start = start_from(store, CURRENT, store.root, "x", TERMS)
    same, other = first_state(store, start, "fedsvd"), first_state(store, start, "ffa")
    assert (same.round, same.adapter_sha256, other.adapter_sha256) == (0, start.adapter_sha256, start.adapter_sha256)
    assert arrays_sha256(same.strategy_state.items()) == arrays_sha256(STATE.items())
    assert other.strategy_state == {}


def test_another_adapter_than_was_meant_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path, adapter_sha256="0" * 64)
    with pytest.raises(ArtifactCorrupt, match="does not start from it"):
        first_state(store, start_from(store, CURRENT, store.root, "x", TERMS), "fedsvd")


def test_a_claim_is_never_below_the_starts() -> None:
    from tests.server.test_rounds import first_state as new

    start = Start("v000007", "sha", 7, 3.5, False)
    assert new().claim(TERMS, start).epsilon == 3.5
    assert new().claim(TERMS).epsilon == 0.0
    assert new().claim(OFF, start).epsilon is None


def test_runs_lie_side_by_side_and_the_one_begun_last_is_gone_on_with(tmp_path: Path) -> None:
    first, starts = plan_of(), [Start(f"v00000{n}", f"{n}" * 64, n, 3.5, False) for n in (1, 2)]
    assert run_folder(tmp_path, first) == tmp_path
    assert newest_start(tmp_path) is None
    RoundStore(tmp_path, first)
    begin(tmp_path, first)
    assert newest_start(tmp_path) is None
    for start in starts:
        plan = started(first, start, tmp_path)
        assert plan.run != first.run
        RoundStore(run_folder(tmp_path, plan), plan)
        begin(tmp_path, plan)
        assert newest_start(tmp_path) == start
        later = replace(start, number=start.number + 5)  # the store went on, the run's own numbers stay
        assert started(first, later, tmp_path) == plan
    assert len({run_folder(tmp_path, started(first, start, tmp_path)) for start in starts}) == 2


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"start": 3}', b"\xff"])
def test_a_damaged_description_is_refused(tmp_path: Path, content: bytes) -> None:
    plan = started(plan_of(), Start("v000001", "1" * 64, 1, None, False), tmp_path)
    RoundStore(run_folder(tmp_path, plan), plan)
    begin(tmp_path, plan)
    (run_folder(tmp_path, plan) / "run.json").write_bytes(content)
    with pytest.raises(ArtifactCorrupt, match="does not describe a run"):
        newest_start(tmp_path)


def test_where_unasked_nodes_have_no_entry_no_start_is_taken() -> None:
    by_chance = PrivacyTerms("client", 8.0, 1e-4, 0.2, "server", 0.25)
    with pytest.raises(InvalidSetting, match="drawn by chance"):
        plan_of(privacy=by_chance, start=Start("v000001", "1" * 64, 1, 1.0, False))


def test_numbers_of_versions() -> None:
    assert [number_of(name) for name in ("v000012", "v1000000", "cheat", "v", "12")] == [12, 1_000_000, 0, 0, 12]
