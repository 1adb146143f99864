"""A node's part in a secret sum: four questions answered once each, with all that lasts between them at the node.

Who asks is not trusted with more than one sum a session. So a node refuses a second, different question of a stage; it
never gives away both secrets of one other node, which together would unmask that node's update; and it unmasks no sum
of fewer updates than the threshold. What it must remember lies in a folder beside its ledger, since the next question
may come to another process; a session's file is deleted when the next one begins.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from client.node import SecretSum
from common.errors import InvalidSetting, UpdateRejected
from common.fixed_point import FixedPoint, flatten
from common.instructions import SecureTerms, TrainRequest
from common.masking import KeyPair, mark_of, new_seed, open_sealed, own_mask, pair_mask, seal, share_out
from common.secret_sum import (
    AskKeys,
    AskShares,
    AskUnmasking,
    AskUpdate,
    Keys,
    Letter,
    MaskedUpdate,
    Question,
    Shares,
    Unmasking,
    decode_answer,
    decode_question,
    encode_message,
)
from common.store import write_atomic
from common.updates import AdapterUpdate

Train = Callable[[TrainRequest, SecretSum], AdapterUpdate]
"""Trains for a request, once it is known what the update will be hidden in."""


class _Memory(msgspec.Struct):
    """All that a node keeps of a session, never sent anywhere."""

    terms: SecureTerms
    mask_scalar: bytes
    letter_scalar: bytes
    seed: bytes
    keys: dict[int, Keys] = msgspec.field(default_factory=dict)
    seed_shares: dict[int, bytes] = msgspec.field(default_factory=dict)
    key_shares: dict[int, bytes] = msgspec.field(default_factory=dict)
    asked: dict[str, bytes] = msgspec.field(default_factory=dict)
    answered: dict[str, bytes] = msgspec.field(default_factory=dict)


class Participant:
    """One node in the sums of its cohorts.

    Parameters
    ----------
    node
        Its id in the fleet.
    folder
        Where it keeps what lasts from question to question; readable by the node alone.
    """

    def __init__(self, node: int, folder: Path) -> None:
        self._node, self._folder = node, folder

    def answer(self, raw: bytes, train: Train) -> bytes:
        """Answer one question of a session.

        Asked the very same again, after a crash of either side, it gives the same bytes.

        Parameters
        ----------
        raw
            One of `common.secret_sum`'s questions.
        train
            Called once, when the update is asked for.

        Raises
        ------
        UpdateRejected
            When the question is one that would tell the server too much, or does not fit the session.
        InvalidSetting
            When it is no question, or its terms are impossible.
        """
        question = decode_question(raw)
        memory = self._recall(question)
        stage, mark = type(question).__name__, hashlib.sha256(raw).digest()
        if memory.asked.setdefault(stage, mark) != mark:
            raise UpdateRejected(
                f"a second, different question {stage} in one session",
                expected="each asked once",
                consequence="the node answers no more of them: the difference of two answers could unmask a node",
            )
        if stage not in memory.answered:
            memory.answered[stage] = encode_message(self._reply(question, memory, train))
            self._remember(question.session, memory)  # before it leaves: there is no second, different answer
        return memory.answered[stage]

    def _reply(self, question: Question, memory: _Memory, train: Train) -> Keys | Shares | MaskedUpdate | Unmasking:
        match question:
            case AskKeys():
                return self._own_keys(memory)
            case AskShares():
                return self._shares(question, memory)
            case AskUpdate():
                return self._masked(question, memory, train)
            case AskUnmasking():
                return self._unmasking(question, memory)

    # -- memory ------------------------------------------------------------------------------------------------------

    def _path(self, session: str) -> Path:
        return self._folder / f"{hashlib.sha256(session.encode()).hexdigest()[:32]}.msgpack"

    def _recall(self, question: Question) -> _Memory:
        path = self._path(question.session)
        if path.exists():
            try:
                return msgspec.msgpack.decode(path.read_bytes(), type=_Memory)
            except (msgspec.DecodeError, msgspec.ValidationError) as error:
                raise UpdateRejected(f"{path} is no memory of a session ({error})", mend="delete it") from error
        if not isinstance(question, AskKeys):
            raise UpdateRejected(
                f"a question {type(question).__name__} of a session that this node did not begin",
                expected="the stages in order",
            )
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in self._folder.glob("*.msgpack"):
            old.unlink(missing_ok=True)
        return _Memory(question.terms, KeyPair.new().scalar, KeyPair.new().scalar, new_seed())

    def _remember(self, session: str, memory: _Memory) -> None:
        write_atomic(self._path(session), msgspec.msgpack.encode(memory))

    # -- the stages --------------------------------------------------------------------------------------------------

    @staticmethod
    def _own_keys(memory: _Memory) -> Keys:
        return Keys(KeyPair(memory.mask_scalar).public, KeyPair(memory.letter_scalar).public)

    def _shares(self, question: AskShares, memory: _Memory) -> Shares:
        """Share out both secrets among all that gave keys, each share in a sealed letter."""
        keys, terms = dict(question.keys), memory.terms
        everyone = [key for each in keys.values() for key in (each.masks, each.letters)]
        if keys.get(self._node) != self._own_keys(memory) or len(set(everyone)) < len(everyone):
            raise UpdateRejected("keys without this node's own, or twice the same", expected="each node's own keys")
        if not terms.threshold <= len(keys) <= terms.cohort:
            raise UpdateRejected(f"keys of {len(keys)} nodes", expected=f"{terms.threshold} to {terms.cohort}")
        nodes = sorted(keys)
        of_seed = dict(zip(nodes, share_out(memory.seed, terms.threshold, len(nodes)), strict=True))
        of_key = dict(zip(nodes, share_out(memory.mask_scalar, terms.threshold, len(nodes)), strict=True))
        memory.keys = keys
        memory.seed_shares[self._node], memory.key_shares[self._node] = of_seed[self._node], of_key[self._node]
        pair = KeyPair(memory.letter_scalar)
        letters = {
            node: seal(pair, keys[node].letters, encode_message(Letter(self._node, node, of_seed[node], of_key[node])))
            for node in nodes
            if node != self._node
        }
        return Shares(letters, mark_of(memory.seed), mark_of(memory.mask_scalar))

    def _masked(self, question: AskUpdate, memory: _Memory, train: Train) -> MaskedUpdate:
        """Read the letters, train, and hide the update from all but the sum."""
        others = sorted(question.letters)
        terms = memory.terms
        if self._node in others or not set(others) <= memory.keys.keys() or len(others) + 1 < terms.threshold:
            raise UpdateRejected(
                f"letters of {len(others)} other nodes",
                expected=f"{terms.threshold - 1} or more, of nodes that gave keys",
                consequence="the node sends nothing: too few updates would hide its own",
            )
        for writer in others:
            self._read(writer, question.letters[writer], memory)
        pair = KeyPair(memory.mask_scalar)
        update = train(question.request, SecretSum(f"{question.session}/{pair.public.hex()}", terms.noisers))
        total = self._on_grid(update, question.request, terms)
        total += own_mask(memory.seed, len(total))
        for node in others:
            total += pair_mask(pair, memory.keys[node].masks, len(total), adds=self._node < node)
        return MaskedUpdate(update.meta, total.astype("<u8").tobytes())

    def _read(self, writer: int, sealed: bytes, memory: _Memory) -> None:
        raw = open_sealed(KeyPair(memory.letter_scalar), memory.keys[writer].letters, sealed)
        letter = decode_answer(raw, Letter)
        if (letter.writer, letter.reader) != (writer, self._node):
            raise UpdateRejected(
                f"a letter from node {letter.writer} to node {letter.reader}",
                expected=f"from {writer} to {self._node}",
            )
        memory.seed_shares[writer], memory.key_shares[writer] = letter.seed_share, letter.key_share

    @staticmethod
    def _on_grid(update: AdapterUpdate, request: TrainRequest, terms: SecureTerms) -> np.ndarray:
        """Return the update on the grid of the sum; where shares of noise rely on a bound, the grid must keep it."""
        row = flatten(update.arrays)
        grid = FixedPoint.for_sum_of(terms.cohort)
        goal = request.objective
        bound = goal.clip * (goal.learning_rate if request.privacy.undivided else 1.0)
        if request.privacy.unit != "off" and grid.widens(bound, len(row)):
            raise InvalidSetting(
                f"a bound of {bound:g} on {len(row)} numbers in steps of {grid.step:.2g}",
                expected="rounding that adds less than a millionth of the bound",
                consequence="the node sends nothing",
                mend="raise --clip, or use a smaller cohort",
            )
        return grid.encode(row)

    def _unmasking(self, question: AskUnmasking, memory: _Memory) -> Unmasking:
        """Give shares of the survivors' seeds and of the dropped nodes' keys, for each node one or the other."""
        survivors, dropped = set(question.survivors), set(question.dropped)
        known = memory.seed_shares.keys()
        if survivors & dropped or survivors | dropped != known or self._node not in survivors:
            raise UpdateRejected(
                f"{len(survivors)} survivors and {len(dropped)} dropped nodes of {len(known)} that share masks",
                expected="each node one or the other, and this one a survivor",
                consequence="the node helps nobody: both secrets of one node would unmask its update",
            )
        if len(survivors) < memory.terms.threshold or "AskUpdate" not in memory.answered:
            raise UpdateRejected(
                f"a sum of {len(survivors)} updates",
                expected=f"at least {memory.terms.threshold}",
                consequence="the node does not unmask it: the noise in it is sized for more",
            )
        return Unmasking(
            {node: memory.seed_shares[node] for node in sorted(survivors)},
            {node: memory.key_shares[node] for node in sorted(dropped)},
        )
