"""What server and nodes say to each other for a secret sum, stage by stage.

Four questions, each with its answer: keys, shares of the secrets, the masked update, what unmasks the sum. Nodes write
to each other in sealed letters that the server only carries.
"""

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from common.errors import InvalidSetting, UpdateRejected
from common.instructions import SecureTerms, TrainRequest
from common.updates import UpdateMeta


class AskKeys(msgspec.Struct, frozen=True, tag="keys"):
    """First: agree on the terms and give two public keys, made for this attempt alone."""

    session: str
    terms: SecureTerms


class Keys(msgspec.Struct, frozen=True):
    """A node's public keys: of its pairwise masks, and of the letters to it."""

    masks: bytes
    letters: bytes


class AskShares(msgspec.Struct, frozen=True, tag="shares"):
    """Second: share out the secrets among the nodes that gave keys."""

    session: str
    keys: Mapping[int, Keys]


class Shares(msgspec.Struct, frozen=True):
    """A sealed letter for each of the others, and the mark of the node's own mask seed."""

    letters: Mapping[int, bytes]
    seed_mark: bytes
    key_mark: bytes


class Letter(msgspec.Struct, frozen=True):
    """What one node trusts another with: a share of the seed of its own mask, and one of its mask key."""

    writer: int
    reader: int
    seed_share: bytes
    key_share: bytes


class AskUpdate(msgspec.Struct, frozen=True, tag="update"):
    """Third: train, and send the update under masks with everyone whose letter is here."""

    session: str
    request: TrainRequest
    letters: Mapping[int, bytes]


class MaskedUpdate(msgspec.Struct, frozen=True):
    """The public side, and the masked numbers as 64-bit little-endian integers."""

    meta: UpdateMeta
    masked: bytes


class AskUnmasking(msgspec.Struct, frozen=True, tag="unmasking"):
    """Fourth: help to unmask the sum over the survivors."""

    session: str
    survivors: tuple[int, ...]
    dropped: tuple[int, ...]


class Unmasking(msgspec.Struct, frozen=True):
    """Shares of the survivors' seeds and of the dropped nodes' mask keys; never both of one node."""

    seed_shares: Mapping[int, bytes]
    key_shares: Mapping[int, bytes]


Question = AskKeys | AskShares | AskUpdate | AskUnmasking
Answer = Keys | Shares | MaskedUpdate | Unmasking
Kind = TypeVar("Kind", Keys, Shares, MaskedUpdate, Unmasking, Letter)


def encode_message(message: Question | Answer | Letter) -> bytes:
    """Return a message as MessagePack."""
    return msgspec.msgpack.encode(message)


def decode_question(raw: bytes) -> Question:
    """Read a question back.

    Raises
    ------
    InvalidSetting
        When it is none of the four, or its terms are impossible.
    """
    try:
        question: Question = msgspec.msgpack.decode(raw, type=Question)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise InvalidSetting(f"a question with {error}", expected="one of this program version") from error
    return question


def decode_answer(raw: bytes, kind: type[Kind]) -> Kind:
    """Read an answer of a kind, or a letter.

    Raises
    ------
    UpdateRejected
        When it is none.
    """
    try:
        return msgspec.msgpack.decode(raw, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise UpdateRejected(f"no {kind.__name__} ({error})", expected="an answer of this program version") from error
