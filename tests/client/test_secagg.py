"""A node in a secret sum gives away no more than one sum, whatever the server asks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from client.node import SecretSum
from client.secagg import Participant
from common.errors import AnabranchError, InvalidSetting, UpdateRejected
from common.fixed_point import FixedPoint
from common.instructions import Objective, PrivacyTerms, SecureTerms, TrainRequest
from common.masking import KeyPair
from common.secret_sum import (
    AskKeys,
    AskShares,
    AskUnmasking,
    AskUpdate,
    Keys,
    MaskedUpdate,
    Question,
    Shares,
    Unmasking,
    decode_answer,
    encode_message,
)
from common.updates import AdapterUpdate, UpdateMeta

TERMS = SecureTerms(4, 3)
REQUEST = TrainRequest(
    "run", 1, "base", "fedsvd", ("b",), "sha", 4, Objective(), PrivacyTerms("off", float("inf"), 1e-4)
)
NODES = (1, 2, 3, 4)


def trained(request: TrainRequest, hidden_in: SecretSum) -> AdapterUpdate:
    arrays = {"b": np.full((2, 3), 0.25, dtype=np.float32)}
    return AdapterUpdate(UpdateMeta("n", request.base_version, request.strategy, request.round, 1.0), arrays)


def must_not_train(request: TrainRequest, hidden_in: SecretSum) -> AdapterUpdate:
    pytest.fail("trained")


@dataclass
class Cohort:
    """Four real nodes and a server that asks what it likes."""

    folder: Path
    session: str = "s"
    terms: SecureTerms = TERMS

    def ask(self, node: int, question: Question, train: Callable[..., AdapterUpdate] = trained) -> bytes:
        return Participant(node, self.folder / str(node)).answer(encode_message(question), train)

    def keys(self, nodes: tuple[int, ...] = NODES) -> dict[int, Keys]:
        return {n: decode_answer(self.ask(n, AskKeys(self.session, self.terms)), Keys) for n in nodes}

    def shares(self, keys: Mapping[int, Keys]) -> dict[int, Shares]:
        return {n: decode_answer(self.ask(n, AskShares(self.session, keys)), Shares) for n in keys}

    def question(self, node: int, shares: Mapping[int, Shares]) -> AskUpdate:
        letters = {writer: each.letters[node] for writer, each in shares.items() if writer != node}
        return AskUpdate(self.session, REQUEST, letters)

    def masked(self, shares: Mapping[int, Shares]) -> dict[int, MaskedUpdate]:
        return {n: decode_answer(self.ask(n, self.question(n, shares)), MaskedUpdate) for n in shares}


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return Cohort(tmp_path)


def refused(cohort: Cohort, node: int, question: Question, reason: str) -> None:
    with pytest.raises(UpdateRejected, match=reason):
        cohort.ask(node, question, must_not_train)


def test_asked_the_very_same_again_it_gives_the_same_bytes(cohort: Cohort) -> None:
    """Also by another process: everything between questions is on the node's disk."""
    opening = AskKeys("s", TERMS)
    assert cohort.ask(1, opening) == cohort.ask(1, opening)
    keys = cohort.keys()
    assert cohort.ask(1, AskShares("s", keys)) == cohort.ask(1, AskShares("s", keys))
    shares = cohort.shares(keys)
    first = cohort.ask(1, cohort.question(1, shares))
    assert cohort.ask(1, cohort.question(1, shares), must_not_train) == first


def test_a_second_different_question_of_a_stage_is_refused(cohort: Cohort) -> None:
    keys = cohort.keys()
    refused(cohort, 1, AskKeys("s", SecureTerms(5, 4)), "a second, different question AskKeys")
    shares = cohort.shares(keys)
    refused(cohort, 1, AskShares("s", {n: keys[n] for n in (1, 2, 3)}), "a second, different question AskShares")
    cohort.masked(shares)
    fewer = {n: shares[n] for n in (1, 2, 3)}
    refused(cohort, 1, cohort.question(1, fewer), "a second, different question AskUpdate")
    other = replace(REQUEST, round=2)
    refused(cohort, 1, AskUpdate("s", other, cohort.question(1, shares).letters), "different question AskUpdate")
    cohort.ask(1, AskUnmasking("s", (1, 2, 3), (4,)))
    refused(cohort, 1, AskUnmasking("s", NODES, ()), "a second, different question AskUnmasking")


def test_dying_in_training_it_answers_when_asked_again(cohort: Cohort) -> None:
    shares = cohort.shares(cohort.keys())

    def dies(request: TrainRequest, hidden_in: SecretSum) -> AdapterUpdate:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cohort.ask(1, cohort.question(1, shares), dies)
    assert decode_answer(cohort.ask(1, cohort.question(1, shares)), MaskedUpdate).masked


def test_both_secrets_of_one_node_are_never_given_away(cohort: Cohort) -> None:
    cohort.masked(cohort.shares(cohort.keys()))
    for survivors, dropped in (
        (NODES, (4,)),  # node 4 as both
        ((1, 2, 3), ()),  # node 4 as neither
        ((1, 2, 3, 4, 5), ()),  # a stranger
        ((2, 3, 4), (1,)),  # itself as dropped
    ):
        with pytest.raises(UpdateRejected, match="each node one or the other, and this one a survivor"):
            cohort.ask(1, AskUnmasking(cohort.session, survivors, dropped))
        cohort = Cohort(cohort.folder, cohort.session + "+")
        cohort.masked(cohort.shares(cohort.keys()))
    given = decode_answer(cohort.ask(1, AskUnmasking(cohort.session, (1, 2, 3), (4,))), Unmasking)
    assert (set(given.seed_shares), set(given.key_shares)) == ({1, 2, 3}, {4})


def test_a_sum_of_too_few_is_not_unmasked(cohort: Cohort) -> None:
    cohort.masked(cohort.shares(cohort.keys()))
    refused(cohort, 1, AskUnmasking("s", (1, 2), (3, 4)), "a sum of 2 updates; expected at least 3")


def test_nothing_is_unmasked_before_the_update_left(cohort: Cohort) -> None:
    cohort.shares(cohort.keys())
    refused(cohort, 1, AskUnmasking("s", NODES, ()), "0 dropped nodes of 1 that share masks")


def test_too_few_companions_and_it_sends_nothing(cohort: Cohort) -> None:
    shares = cohort.shares(cohort.keys())
    refused(cohort, 1, cohort.question(1, {n: shares[n] for n in (1, 2)}), "letters of 1 other nodes; expected 2")


def test_stages_out_of_order_are_refused(cohort: Cohort) -> None:
    keys = cohort.keys()
    refused(cohort, 1, AskUpdate("s", REQUEST, {2: b"", 3: b""}), "letters of 2 other nodes")
    refused(cohort, 1, AskShares("never begun", keys), "a session that this node did not begin")


def test_a_new_session_forgets_the_old_one(cohort: Cohort) -> None:
    keys = cohort.keys()
    again = Cohort(cohort.folder, "t").keys()
    assert again[1].masks != keys[1].masks
    assert len(list((cohort.folder / "1").iterdir())) == 1
    assert (cohort.folder / "1").stat().st_mode & 0o077 == 0
    refused(cohort, 1, AskShares("s", keys), "did not begin")


def test_keys_that_are_not_the_nodes_own_are_refused(cohort: Cohort) -> None:
    keys = cohort.keys()
    forged = Keys(KeyPair.new().public, KeyPair.new().public)
    for wrong in (
        {**keys, 1: forged},
        {n: keys[n] for n in (2, 3, 4)},
        {**keys, 2: keys[3]},
        {**keys, 2: Keys(keys[2].masks, keys[2].masks)},
    ):
        with pytest.raises(UpdateRejected, match="keys without this node's own, or twice the same"):
            Cohort(cohort.folder).ask(1, AskShares("s", wrong))


def test_keys_of_too_few_or_too_many_are_refused(cohort: Cohort) -> None:
    keys = cohort.keys()
    refused(cohort, 1, AskShares("s", {n: keys[n] for n in (1, 2)}), "keys of 2 nodes; expected 3 to 4")
    more = {**keys, **{n: Keys(KeyPair.new().public, KeyPair.new().public) for n in (5, 6)}}
    refused(cohort, 2, AskShares("s", more), "keys of 6 nodes; expected 3 to 4")


def test_letters_of_another_or_to_another_are_refused(cohort: Cohort) -> None:
    shares = cohort.shares(cohort.keys())
    right = cohort.question(1, shares).letters
    for wrong in ({**right, 2: right[3]}, {**right, 2: shares[2].letters[3]}, {**right, 2: right[2][:-4]}):
        with pytest.raises(UpdateRejected, match="cannot be opened"):
            Cohort(cohort.folder).ask(1, AskUpdate("s", REQUEST, wrong), must_not_train)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_what_would_wrap_around_is_not_sent(cohort: Cohort, value: float) -> None:
    shares = cohort.shares(cohort.keys())

    def spoiled(request: TrainRequest, hidden_in: SecretSum) -> AdapterUpdate:
        update = trained(request, hidden_in)
        return AdapterUpdate(update.meta, {"b": np.full((2, 3), value, dtype=np.float32)})

    with pytest.raises(UpdateRejected, match="not finite or larger"):
        cohort.ask(1, cohort.question(1, shares), spoiled)


def test_a_bound_finer_than_the_grid_is_refused(cohort: Cohort) -> None:
    shares = cohort.shares(cohort.keys())
    terms = PrivacyTerms("user", 8.0, 1e-4, 0.2, "shared")
    request = replace(REQUEST, privacy=terms, noise_multiplier=1.0, objective=Objective(clip=1e-8))
    question = AskUpdate("s", request, cohort.question(1, shares).letters)
    with pytest.raises(InvalidSetting, match="rounding that adds less than a millionth of the bound"):
        cohort.ask(1, question)


def test_it_trains_knowing_what_hides_it(cohort: Cohort) -> None:
    told: list[SecretSum] = []

    def listening(request: TrainRequest, hidden_in: SecretSum) -> AdapterUpdate:
        told.append(hidden_in)
        return trained(request, hidden_in)

    for session in ("s", "t"):
        each = Cohort(cohort.folder, session, SecureTerms(5, 4, 1))
        shares = each.shares(each.keys((1, 2, 3, 4, 5)))
        each.ask(1, each.question(1, shares), listening)
    assert [each.noisers for each in told] == [3, 3]
    assert told[0].name != told[1].name  # another attempt, another release


def test_the_masked_update_shows_nothing_of_a_constant_one(cohort: Cohort) -> None:
    answer = cohort.masked(cohort.shares(cohort.keys()))[1]
    numbers = np.frombuffer(answer.masked, dtype="<u8")
    assert len(set(numbers.tolist())) == 6
    assert FixedPoint.for_sum_of(4).encode(np.array([0.25]))[0] not in numbers


@pytest.mark.parametrize("raw", [b"", b"\xc1", encode_message(Keys(b"", b"")), b"\x81\xa4type\xa5other"])
def test_what_is_no_question_is_refused(cohort: Cohort, raw: bytes) -> None:
    with pytest.raises(AnabranchError, match="a question with"):
        Participant(1, cohort.folder / "1").answer(raw, must_not_train)


def test_weak_terms_are_refused_by_the_node_itself(cohort: Cohort) -> None:
    weak = encode_message(AskKeys("s", TERMS)).replace(b"\xa9threshold\x03", b"\xa9threshold\x02")
    with pytest.raises(InvalidSetting, match="a threshold of 2"):
        Participant(1, cohort.folder / "1").answer(weak, must_not_train)
    assert not (cohort.folder / "1").exists()


def test_a_damaged_memory_is_refused(cohort: Cohort) -> None:
    keys = cohort.keys()
    (path,) = (cohort.folder / "1").iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    refused(cohort, 1, AskShares("s", keys), "no memory of a session")
