"""The server learns one sum: right up to the grid, whoever drops out above the threshold, and nothing below it."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client.node import SecretSum
from client.postprocess import add_noise, clip_whole
from common.encoder.adapter import initial_adapter
from common.errors import BudgetExceeded, RoundError, UpdateRejected
from common.fixed_point import FixedPoint, flatten
from common.instructions import Objective, PrivacyTerms, SecureTerms, TrainRequest
from common.masking import own_mask, put_together
from common.progress import silent as no_progress
from common.secret_sum import Keys, MaskedUpdate, Shares, Unmasking, decode_answer, encode_message
from common.updates import AdapterUpdate
from server.aggregate import strategy_named
from server.aggregate.base import RowAdam
from server.fleet.base import Failure, RawReply
from server.intake import Intake
from server.plan import RunPlan
from server.pool import Pool, ServerNoise
from server.rounds import RoundLoop, RoundStore, RunState
from server.secagg import SecretSession, unmask
from tests.common.test_masking import CHI_LIMIT, chi_square
from tests.server.memory_fleet import MemoryFleet, Spoiler, gone, honest
from tests.server.test_pool import Recording, Table
from tests.server.test_rounds import fingerprint, first_state, plan_of

SHAPES = {"x.lora_A.weight": (2, 6), "x.lora_B.weight": (5, 2)}
OFF = PrivacyTerms("off", math.inf, 1e-4, 0.2)
NAME = "x.lora_B.weight"
NODES = (1, 2, 3, 4, 5)
TERMS = SecureTerms(5, 3)


def request_of(**changes: object) -> TrainRequest:
    request = TrainRequest("run", 1, "base", "fedsvd", (NAME,), "sha", 4, Objective(), OFF)
    return replace(request, **changes)  # type: ignore[arg-type]  # by name


def session_of(request: TrainRequest | None = None, terms: SecureTerms = TERMS) -> SecretSession:
    requests = dict.fromkeys(range(1, terms.cohort + 1), request or request_of())
    return SecretSession("s", terms, requests, initial_adapter(SHAPES, 0), 600.0)


def total_of(fleet: MemoryFleet, session: SecretSession | None = None) -> tuple[Pool, Intake]:
    session = session or session_of()
    intake = Intake(1, session.requests, session.adapter, fleet, 600.0)
    return session.total(fleet, intake, lambda count: None), intake


def plain_sum(nodes: tuple[int, ...], request: TrainRequest | None = None) -> np.ndarray:
    adapter = initial_adapter(SHAPES, 0)
    updates = [honest(node, request or request_of(), adapter).arrays[NAME].astype(np.float64) for node in nodes]
    total: np.ndarray = np.sum(updates, axis=0)
    return total


def close(pool: Pool, nodes: tuple[int, ...]) -> bool:
    """Tell whether a sum is the plain one up to half a step a node, and the rounding of float64."""
    off = np.abs(pool.sums[NAME] - plain_sum(nodes)).max()
    return bool(off <= len(nodes) * FixedPoint.for_sum_of(5).step / 2 + 1e-15)


# -- the sum ---------------------------------------------------------------------------------------------------------


def test_the_secret_sum_is_the_plain_sum_up_to_the_grid(tmp_path: Path) -> None:
    pool, intake = total_of(MemoryFleet(5, folder=tmp_path))
    assert close(pool, NODES)
    assert (pool.clients, pool.examples, intake.usable) == (5, 5.0, 5)
    assert FixedPoint.for_sum_of(5).step < 1e-13


STAGES = ("AskKeys", "AskShares", "AskUpdate", "AskUnmasking")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("lost", [(1,), (3, 5)])
def test_nodes_may_drop_out_at_each_stage(tmp_path: Path, stage: str, lost: tuple[int, ...]) -> None:
    fleet = MemoryFleet(5, folder=tmp_path, spoiled={(stage, node): gone for node in lost})
    pool, intake = total_of(fleet)
    # who only does not help to unmask has given its update
    left = NODES if stage == "AskUnmasking" else tuple(node for node in NODES if node not in lost)
    assert close(pool, left)
    assert set(intake.failed) == {str(node) for node in lost}
    assert pool.clients == len(left)


def test_a_node_may_drop_out_at_every_stage_at_once(tmp_path: Path) -> None:
    terms = SecureTerms(7, 4)
    spoiled = {("AskKeys", 1): gone, ("AskShares", 3): gone, ("AskUpdate", 6): gone}
    pool, _ = total_of(MemoryFleet(7, folder=tmp_path, spoiled=spoiled), session_of(terms=terms))
    np.testing.assert_allclose(pool.sums[NAME], plain_sum((2, 4, 5, 7)), atol=1e-13)


@pytest.mark.parametrize("stage", STAGES)
def test_below_the_threshold_nothing_is_unmasked(tmp_path: Path, stage: str) -> None:
    fleet = MemoryFleet(5, folder=tmp_path, spoiled={(stage, node): gone for node in (1, 2, 4)})
    with pytest.raises(RoundError, match=r"of 2 nodes of 5; the first reason: .*600 s; expected at least 3; nothing"):
        total_of(fleet)
    if stage != "AskUnmasking":
        assert not [entry for entry in fleet.seen if entry[0] == "AskUnmasking"]


def test_spent_budgets_end_the_run_by_their_name(tmp_path: Path) -> None:
    def spent(reply: RawReply) -> RawReply:
        return RawReply(reply.node, Failure(reply.node, "BudgetExceeded: this round would bring epsilon to 9"))

    fleet = MemoryFleet(5, folder=tmp_path, spoiled={("AskUpdate", node): spent for node in (1, 2, 4)})
    with pytest.raises(BudgetExceeded, match="round 1 was refused by 3 of 5 nodes for their privacy budget"):
        total_of(fleet)


# -- what the server can see -----------------------------------------------------------------------------------------


def transcript(fleet: MemoryFleet, stage: str, kind: type) -> dict[int, object]:
    return {node: decode_answer(raw, kind) for each, node, raw in fleet.seen if each == stage}


def test_every_masked_update_looks_like_noise_and_only_the_sum_is_in_the_transcript(tmp_path: Path) -> None:
    """Equal updates, all nodes: were the masks weak, the numbers would show a pattern."""
    shape = (100, 100)

    def same(
        node: int, request: TrainRequest, adapter: Mapping[str, np.ndarray], hidden_in: SecretSum | None
    ) -> AdapterUpdate:
        return AdapterUpdate(honest(node, request, adapter).meta, {NAME: np.full(shape, 0.5, dtype=np.float32)})

    session = replace(session_of(), adapter={NAME: np.zeros(shape, dtype=np.float32)})
    fleet = MemoryFleet(5, folder=tmp_path, update=same)
    pool, _ = total_of(fleet, session)
    np.testing.assert_array_equal(pool.sums[NAME], np.full(shape, 2.5))
    secret = FixedPoint.for_sum_of(5).encode(np.full(10_000, 0.5))
    assert chi_square(secret) > CHI_LIMIT
    masked = {n: np.frombuffer(each.masked, "<u8") for n, each in _masked(fleet).items()}
    assert len(masked) == 5
    for numbers in masked.values():
        assert chi_square(numbers) < CHI_LIMIT
        assert chi_square(numbers - secret) < CHI_LIMIT  # what hides it is uniform by itself
    # no sum of fewer than all tells anything either
    for few in itertools.chain.from_iterable(itertools.combinations(masked, size) for size in (2, 3, 4, 5)):
        total = np.zeros(10_000, dtype=np.uint64)
        for node in few:
            total += masked[node]
        assert chi_square(total) < CHI_LIMIT
    raw = b"".join(raw for _, _, raw in fleet.seen)
    assert secret.tobytes()[:64] not in raw


def _masked(fleet: MemoryFleet) -> dict[int, MaskedUpdate]:
    return {
        n: each for n, each in transcript(fleet, "AskUpdate", MaskedUpdate).items() if isinstance(each, MaskedUpdate)
    }


def test_the_whole_transcript_does_not_unmask_one_node(tmp_path: Path) -> None:
    """With all that it has learned the server takes off a node's own mask; the pairwise ones stay on."""
    fleet = MemoryFleet(5, folder=tmp_path)
    total_of(fleet)
    shares, helpers = transcript(fleet, "AskShares", Shares), transcript(fleet, "AskUnmasking", Unmasking)
    grid = FixedPoint.for_sum_of(5)
    for node, answer in _masked(fleet).items():
        said = shares[node]
        assert isinstance(said, Shares)
        given = [helper.seed_shares[node] for helper in helpers.values() if isinstance(helper, Unmasking)]
        numbers = np.frombuffer(answer.masked, "<u8") - own_mask(put_together(given, 3, said.seed_mark), 10)
        own = grid.encode(flatten({NAME: honest(node, request_of(), initial_adapter(SHAPES, 0)).arrays[NAME]}))
        assert not (numbers == own).any()
        # and the keys that the pairwise masks need are not to be had: no share of them left any node
        assert not any(helper.key_shares for helper in helpers.values() if isinstance(helper, Unmasking))


@pytest.mark.parametrize("colluding", [0, 1, 2])
def test_fewer_shares_than_the_threshold_give_no_secret(tmp_path: Path, colluding: int) -> None:
    """A server and two nodes that tell it all they hold are still one short of any secret of another."""
    import msgspec

    from client.secagg import _Memory

    fleet = MemoryFleet(5, folder=tmp_path, spoiled={("AskUnmasking", node): gone for node in NODES})
    with pytest.raises(RoundError):
        total_of(fleet)
    memories = [
        msgspec.msgpack.decode(next((tmp_path / f"node-{node}").iterdir()).read_bytes(), type=_Memory)
        for node in NODES[:colluding]
    ]
    said = transcript(fleet, "AskShares", Shares)[5]
    assert isinstance(said, Shares)
    for held, mark in (
        ([memory.seed_shares[5] for memory in memories], said.seed_mark),
        ([memory.key_shares[5] for memory in memories], said.key_mark),
    ):
        for threshold in {3, max(1, colluding)}:
            with pytest.raises(UpdateRejected):
                put_together(held, threshold, mark)


def test_two_attempts_have_nothing_in_common(tmp_path: Path) -> None:
    first, second = MemoryFleet(5, folder=tmp_path / "a"), MemoryFleet(5, folder=tmp_path / "b")
    total_of(first)
    total_of(second)
    for node in NODES:
        numbers = [np.frombuffer(_masked(fleet)[node].masked, "<u8") for fleet in (first, second)]
        assert not (numbers[0] == numbers[1]).any()


# -- nodes that lie --------------------------------------------------------------------------------------------------


def answering(answer: Keys | Shares | MaskedUpdate | Unmasking | bytes) -> Spoiler:
    raw = answer if isinstance(answer, bytes) else encode_message(answer)
    return lambda reply: RawReply(reply.node, raw)


def test_what_is_no_answer_costs_only_its_node(tmp_path: Path) -> None:
    lies: list[tuple[str, Keys | Shares | MaskedUpdate | Unmasking | bytes]] = [
        ("AskKeys", b""),
        ("AskKeys", Unmasking({}, {})),
        ("AskShares", b"\xc1"),
        ("AskShares", Shares({}, b"", b"")),
        ("AskUpdate", b"words"),
        ("AskUnmasking", b"words"),
    ]
    for number, (stage, answer) in enumerate(lies):
        fleet = MemoryFleet(5, folder=tmp_path / str(number), spoiled={(stage, 2): answering(answer)})
        pool, intake = total_of(fleet)
        assert close(pool, NODES if stage == "AskUnmasking" else (1, 3, 4, 5)), stage
        assert set(intake.failed) == {"2"}


def test_a_masked_update_that_lies_on_its_public_side_is_left_out(tmp_path: Path) -> None:
    def lying(**changes: object) -> Spoiler:
        def lie(reply: RawReply) -> RawReply:
            assert isinstance(reply.outcome, bytes)
            answer = decode_answer(reply.outcome, MaskedUpdate)
            meta = replace(answer.meta, **{k: v for k, v in changes.items() if k != "cut"})  # type: ignore[arg-type]  # by name
            masked = answer.masked[:-8] if "cut" in changes else answer.masked
            return RawReply(reply.node, encode_message(MaskedUpdate(meta, masked)))

        return lie

    lies: list[tuple[dict[str, object], str]] = [
        ({"round": 7}, "round 7; expected 1"),
        ({"base_version": "old"}, "base version 'old'"),
        ({"examples": math.nan}, "nan expected records"),
        ({"cut": True}, "a masked update of 72 bytes; expected 80"),
    ]
    for number, (changes, reason) in enumerate(lies):
        fleet = MemoryFleet(5, folder=tmp_path / str(number), spoiled={("AskUpdate", 4): lying(**changes)})
        pool, intake = total_of(fleet)
        assert close(pool, (1, 2, 3, 5))
        (quarantined,) = intake.quarantined
        assert reason in quarantined.reason


def test_wrong_shares_of_one_node_do_no_harm_and_of_most_refuse_the_round(tmp_path: Path) -> None:
    def wrong(reply: RawReply) -> RawReply:
        assert isinstance(reply.outcome, bytes)
        answer = decode_answer(reply.outcome, Unmasking)
        flipped = {
            node: share[:4] + bytes(byte ^ 1 for byte in share[4:]) for node, share in answer.seed_shares.items()
        }
        return RawReply(reply.node, encode_message(Unmasking(flipped, answer.key_shares)))

    one = MemoryFleet(5, folder=tmp_path / "one", spoiled={("AskUnmasking", 2): wrong})
    assert close(total_of(one)[0], NODES)
    most = MemoryFleet(5, folder=tmp_path / "most", spoiled={("AskUnmasking", node): wrong for node in (1, 2, 3)})
    with pytest.raises(RoundError, match="shares that give no secret"):
        total_of(most)


def test_a_marked_key_that_is_not_the_one_given_is_refused() -> None:
    with pytest.raises(UpdateRejected, match="shares that give no secret"):
        unmask(
            {1: np.zeros(2, dtype=np.uint64)},
            {1: Keys(b"", b"")},
            {1: Shares({}, b"mark", b"mark")},
            {1: Unmasking({1: b"s"}, {})},
            1,
        )


# -- in the round loop -----------------------------------------------------------------------------------------------

SECURE: dict[str, object] = {"secure_aggregation": True, "cohort": 5, "min_replies": 4, "rounds": 1}


def run(folder: Path, plan: RunPlan, fleet: MemoryFleet, strategy: Recording, sigma: float = 1.0) -> RunState:
    store = RoundStore(folder / "rounds", plan)
    loop = RoundLoop(
        plan,
        strategy,
        fleet,
        store,
        device=torch.device("cpu"),
        clock=lambda: 1_000,
        progress=no_progress,
        noise=ServerNoise(Table(sigma), 11),
    )
    return loop.run(store.latest() or first_state(), lambda state: None)


def mean_under(tmp_path: Path, name: str, **changes: object) -> np.ndarray:
    recording = Recording()
    run(
        tmp_path / name,
        plan_of(**{"cohort": 5, "rounds": 1, **changes}),
        MemoryFleet(5, folder=tmp_path / name),
        recording,
    )
    (given,) = recording.given
    return given.arrays[NAME]


def test_without_noise_all_modes_give_the_plain_mean_up_to_the_grid(tmp_path: Path) -> None:
    request = request_of(base_version=first_state().adapter_sha256)
    adapter = first_state().adapter
    plain = np.mean([honest(node, request, adapter).arrays[NAME].astype(np.float64) for node in NODES], axis=0)
    modes: dict[str, dict[str, object]] = {
        "server": {"privacy": replace(OFF, noise="server")},
        "shared": {**SECURE, "privacy": replace(OFF, noise="shared")},
        "server and secret": {**SECURE, "privacy": replace(OFF, noise="server")},
        "local and secret": {**SECURE, "privacy": OFF},
    }
    for name, changes in modes.items():
        np.testing.assert_allclose(mean_under(tmp_path, name, **changes), plain, rtol=1e-6, atol=1e-9)


def sharing(sigma: float, clip: float) -> MemoryFleet:
    """Return nodes whose updates are nothing but their share of the noise."""

    def update(
        node: int, request: TrainRequest, adapter: Mapping[str, np.ndarray], hidden_in: SecretSum | None
    ) -> AdapterUpdate:
        assert hidden_in is not None
        bounded = clip_whole({NAME: np.zeros(adapter[NAME].shape)}, clip)
        arrays = add_noise(bounded, sigma * clip / math.sqrt(hidden_in.noisers), node, request.round)
        return AdapterUpdate(honest(node, request, adapter).meta, arrays)

    return MemoryFleet(5, update=update)


@pytest.mark.parametrize(("colluders", "survivors"), [(0, 4), (0, 5), (1, 4)])
def test_shares_of_the_noise_add_up_to_that_of_one_trusted_server(
    tmp_path: Path, colluders: int, survivors: int
) -> None:
    """Variance of the sum: exactly one noise at the least number of honest nodes, and never less."""
    sigma, clip = 2.0, 0.5
    terms = SecureTerms(5, 4, colluders)
    fleet = sharing(sigma, clip)
    fleet.folder = tmp_path
    fleet.spoiled = {("AskUpdate", 5): gone} if survivors == 4 else {}
    session = replace(session_of(terms=terms), adapter={NAME: np.zeros((200, 100), dtype=np.float32)})
    noise = total_of(fleet, session)[0].sums[NAME].ravel()
    expected = sigma * clip * math.sqrt(survivors / terms.noisers)
    assert noise.std() == pytest.approx(expected, rel=6 / math.sqrt(2 * noise.size))  # six standard errors
    assert expected >= sigma * clip
    honest_part = expected * math.sqrt((survivors - colluders) / survivors)
    assert honest_part >= sigma * clip * (1 - 1e-12)


def test_a_round_below_its_smallest_cohort_is_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    plan = plan_of(**SECURE, privacy=replace(OFF, noise="shared"))
    spoiled = {("AskUpdate", 1): gone, ("AskUpdate", 2): gone}
    recording = Recording()
    with pytest.raises(RoundError, match=r"masked updates of 3 nodes of 5.*expected at least 4.*stays charged"):
        run(tmp_path, plan, MemoryFleet(5, folder=tmp_path, spoiled=spoiled), recording)
    assert recording.given == []
    assert RoundStore(tmp_path / "rounds", plan).latest() is None
    # mended, the same run goes on
    state = run(tmp_path, plan, MemoryFleet(5, folder=tmp_path), recording)
    assert (state.round, state.history[0].replied) == (1, 5)


def test_a_secret_round_keeps_its_books(tmp_path: Path) -> None:
    plan = plan_of(**SECURE, privacy=PrivacyTerms("user", 8.0, 1e-4, 0.2, "shared"))
    fleet = MemoryFleet(5, folder=tmp_path, spoiled={("AskUpdate", 3): gone})
    recording = Recording()
    record = run(tmp_path, plan, fleet, recording).history[0]
    assert (record.planned, record.replied, dict(record.failed)) == (5, 4, {"3": "no reply within 600 s"})
    assert record.reply_bytes == 4 * 8 * 10
    assert record.epsilon == pytest.approx(0.1 + 0.001 * 5)
    assert recording.given[0].meta.examples == 4.0
    assert {request.noise_multiplier for request in fleet.asked} == {1.0}


def test_the_same_plan_gives_the_same_adapter_whatever_the_masks(tmp_path: Path) -> None:
    plan = plan_of(**{**SECURE, "rounds": 2}, privacy=OFF)
    states = []
    for name in ("a", "b"):
        store = RoundStore(tmp_path / name / "rounds", plan)
        loop = RoundLoop(
            plan,
            strategy_named("fedsvd", RowAdam()),
            MemoryFleet(5, folder=tmp_path / name),
            store,
            device=torch.device("cpu"),
            clock=lambda: 1_000,
            progress=no_progress,
        )
        states.append(loop.run(first_state(), lambda state: None))
    assert fingerprint(states[0]) == fingerprint(states[1])
