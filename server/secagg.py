"""The server's part in a secret sum: it carries sealed letters and masked updates, and learns one total.

Four stages over a fleet. A node may drop out in each of them; while as many as the threshold are left, the sum over
those whose masked update arrived is unmasked: their own masks by the shares of their seeds, and the masks that they
have in common with dropped nodes by the shares of those nodes' keys. With fewer nothing can be unmasked, and the round
is refused.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from common.errors import BudgetExceeded, RoundError, UpdateRejected
from common.fixed_point import FixedPoint, unflatten
from common.instructions import SecureTerms, TrainRequest
from common.masking import KeyPair, own_mask, pair_mask, put_together
from common.secret_sum import (
    AskKeys,
    AskShares,
    AskUnmasking,
    AskUpdate,
    Keys,
    Kind,
    MaskedUpdate,
    Question,
    Shares,
    Unmasking,
    decode_answer,
    encode_message,
)
from server.fleet.base import Failure, Fleet
from server.intake import Intake
from server.pool import Pool


@dataclass(frozen=True, slots=True)
class SecretSession:
    """One attempt at the sum of one round.

    Parameters
    ----------
    name
        Of this attempt alone.
    terms
        Cohort, threshold, colluders.
    requests
        What each node of the cohort is asked to train.
    adapter
        What they start from.
    timeout_s
        Patience with the slowest node of a stage.
    """

    name: str
    terms: SecureTerms
    requests: Mapping[int, TrainRequest]
    adapter: Mapping[str, np.ndarray]
    timeout_s: float

    def total(self, fleet: Fleet, intake: Intake, answered: Callable[[int], None]) -> Pool:
        """Return the sum over the nodes that stayed; `intake` is told of all others.

        Parameters
        ----------
        fleet
            Whom to ask.
        intake
            Learns who failed, who was refused, and the public side of the updates in the sum.
        answered
            Called with the number of masked updates so far.

        Raises
        ------
        BudgetExceeded
            When too few nodes are left because their budgets are spent.
        RoundError
            When after a stage fewer nodes than the threshold are left, or the sum cannot be unmasked.
        """
        nodes = sorted(self.requests)
        keys = self._ask(fleet, intake, dict.fromkeys(nodes, AskKeys(self.name, self.terms)), Keys)
        self._refuse_few("keys", keys, intake)
        shares = self._ask(fleet, intake, dict.fromkeys(keys, AskShares(self.name, keys)), Shares)
        shares = {node: each for node, each in shares.items() if self._wrote_to_all(node, each, keys, intake)}
        self._refuse_few("shares", shares, intake)
        questions = {
            node: AskUpdate(
                self.name,
                self.requests[node],
                {writer: shares[writer].letters[node] for writer in shares if writer != node},
            )
            for node in shares
        }
        masked = self._masked(fleet, intake, questions, answered)
        self._refuse_few("masked updates", masked, intake)
        dropped = tuple(sorted(shares.keys() - masked.keys()))
        question = AskUnmasking(self.name, tuple(masked), dropped)
        helpers = self._ask(fleet, intake, dict.fromkeys(masked, question), Unmasking)
        self._refuse_few("unmasking", helpers, intake)
        total = unmask(masked, keys, shares, helpers, self.terms.threshold)
        return self._pool(total, len(masked), intake)

    def _refuse_few(self, stage: str, left: Mapping[int, object], intake: Intake) -> None:
        if len(left) >= self.terms.threshold:
            return
        refusals = intake.over_budget()
        if refusals and len(self.requests) - len(refusals) < self.terms.threshold:
            raise BudgetExceeded(
                f"round {intake.number} was refused by {len(refusals)} of {len(self.requests)} nodes for their privacy "
                f"budget{intake.first_reason()}",
                expected=f"at least {self.terms.threshold} with budget left",
                consequence=f"nothing is unmasked and the model of round {intake.number - 1} stays",
                mend="ask for no more rounds than planned, or raise --epsilon in a new store, knowingly",
            )
        raise RoundError(
            f"round {intake.number} has {stage} of {len(left)} nodes of {len(self.requests)}{intake.first_reason()}",
            expected=f"at least {self.terms.threshold}",
            consequence=f"nothing is unmasked, the model of round {intake.number - 1} stays, and what the nodes "
            "charged stays charged",
            mend="mend the nodes and run the same command with --resume",
        )

    # -- stages ------------------------------------------------------------------------------------------------------

    def _ask(
        self, fleet: Fleet, intake: Intake, questions: Mapping[int, Question], kind: type[Kind]
    ) -> dict[int, Kind]:
        """Ask a stage's questions; return the answers of the expected kind, and leave the others out of the sum."""
        raw = {node: encode_message(question) for node, question in questions.items()}
        answers: dict[int, Kind] = {}
        for reply in fleet.ask(raw, None, group=self.name, timeout_s=self.timeout_s, answered=lambda count: None):
            intake.count(reply)
            try:
                if isinstance(reply.outcome, Failure):
                    raise UpdateRejected(reply.outcome.reason)
                answers[reply.node] = decode_answer(reply.outcome, kind)
            except UpdateRejected as error:
                intake.fail(reply.node, f"{kind.__name__.lower()}: {error}")
        return answers

    @staticmethod
    def _wrote_to_all(node: int, shares: Shares, keys: Mapping[int, Keys], intake: Intake) -> bool:
        if set(shares.letters) | {node} == keys.keys():
            return True
        intake.fail(node, f"shares: letters to {len(shares.letters)} nodes; expected one to each of the others")
        return False

    def _masked(
        self, fleet: Fleet, intake: Intake, questions: Mapping[int, AskUpdate], answered: Callable[[int], None]
    ) -> dict[int, np.ndarray]:
        """Return the masked updates by node; they look like noise, so only their form and public side are checked."""
        raw = {node: encode_message(question) for node, question in questions.items()}
        size = sum(int(self.adapter[name].size) for name in self._trained())
        masked: dict[int, np.ndarray] = {}
        for reply in fleet.ask(raw, self.adapter, group=self.name, timeout_s=self.timeout_s, answered=answered):
            intake.count(reply)
            if isinstance(reply.outcome, Failure):
                intake.fail(reply.node, reply.outcome.reason)
                continue
            try:
                answer = decode_answer(reply.outcome, MaskedUpdate)
            except UpdateRejected as error:
                intake.fail(reply.node, str(error))
                continue
            if intake.accept_masked(reply.node, answer.meta, len(answer.masked), 8 * size):
                masked[reply.node] = np.frombuffer(answer.masked, dtype="<u8").astype(np.uint64)
        return masked

    def _trained(self) -> tuple[str, ...]:
        return next(iter(self.requests.values())).trained

    def _pool(self, total: np.ndarray, clients: int, intake: Intake) -> Pool:
        numbers = FixedPoint.for_sum_of(self.terms.cohort).decode(total)
        sums = unflatten(numbers, {name: self.adapter[name].shape for name in self._trained()})
        return Pool(sums, clients, intake.examples)


def unmask(
    masked: Mapping[int, np.ndarray],
    keys: Mapping[int, Keys],
    shares: Mapping[int, Shares],
    helpers: Mapping[int, Unmasking],
    threshold: int,
) -> np.ndarray:
    """Return the sum of the masked updates without their masks, uint64.

    Parameters
    ----------
    masked
        Survivors to what they sent.
    keys
        Public keys of all that gave some.
    shares
        What each node that shared its secrets out said of them; those not in `masked` dropped out after it.
    helpers
        Survivors to the shares that they gave away.
    threshold
        Shares that make a secret.

    Raises
    ------
    UpdateRejected
        When a secret cannot be put together, or is not the one that was marked.
    """
    survivors = sorted(masked)
    total = np.zeros_like(masked[survivors[0]])
    for node in survivors:
        total += masked[node]
        given = [helper.seed_shares[node] for helper in helpers.values() if node in helper.seed_shares]
        total -= own_mask(put_together(given, threshold, shares[node].seed_mark), len(total))
    for node in sorted(shares.keys() - masked.keys()):
        given = [helper.key_shares[node] for helper in helpers.values() if node in helper.key_shares]
        pair = KeyPair(put_together(given, threshold, shares[node].key_mark))
        if pair.public != keys[node].masks:
            raise UpdateRejected(f"a mask key of node {node} that is not its own", expected="the one it gave")
        for survivor in survivors:
            # the dropped node's side of the mask is the opposite of what the survivor has added
            total += pair_mask(pair, keys[survivor].masks, len(total), adds=node < survivor)
    return total
