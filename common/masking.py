"""The cryptography of a secret sum: keys, masks, shares of secrets, sealed letters.

Bonawitz et al., 2017, "Practical secure aggregation for privacy-preserving machine learning". Key agreement, sealing
and Shamir's sharing are Flower's own primitives. Its mask generator is not used: it folds the key to 32 bits, seeds a
Mersenne Twister with them and never draws the largest number of the ring, so a mask can be found by trying. Here a mask
is the ChaCha20 key stream of the whole 256-bit key.
"""

import base64
import hashlib
import secrets
from collections.abc import Sequence

import numpy as np
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.fernet import InvalidToken
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, encrypt, generate_shared_key
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, generate_key_pairs, public_key_to_bytes

from common.errors import UpdateRejected

SEED_BYTES = 32
_SCALAR_BYTES = 48
_NONCE = bytes(16)
"""Every key makes one mask, so one nonce will do."""


class KeyPair:
    """A private key for one attempt at a sum, and its public side.

    Parameters
    ----------
    scalar
        The private key's number, 48 bytes; what is shared out when the node may drop out.

    Raises
    ------
    UpdateRejected
        When the bytes are no private key.
    """

    def __init__(self, scalar: bytes) -> None:
        try:
            self._key = ec.derive_private_key(int.from_bytes(scalar, "big"), ec.SECP384R1())
        except ValueError as error:
            raise UpdateRejected("bytes that are no private key", expected="what was shared out") from error
        self.scalar = scalar
        self.public = public_key_to_bytes(self._key.public_key())

    @classmethod
    def new(cls) -> "KeyPair":
        """Draw a pair from the operating system."""
        key, _ = generate_key_pairs()
        return cls(key.private_numbers().private_value.to_bytes(_SCALAR_BYTES, "big"))

    def secret_with(self, other: bytes) -> bytes:
        """Return the secret that this key and another's public side share: both sides get the same.

        Raises
        ------
        UpdateRejected
            When the other's bytes are no public key of this kind.
        """
        try:
            return generate_shared_key(self._key, bytes_to_public_key(other))
        except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
            raise UpdateRejected("bytes that are no public key", expected="one on the curve P-384") from error


def new_seed() -> bytes:
    """Draw the seed of a node's own mask from the operating system."""
    return secrets.token_bytes(SEED_BYTES)


def mark_of(secret: bytes) -> bytes:
    """Return what shows later that a secret was put together rightly, and tells nothing of it now."""
    return hashlib.sha256(secret).digest()


def own_mask(seed: bytes, size: int) -> np.ndarray:
    """Return a node's own mask, uint64 [size], uniform over the ring."""
    return _stream(seed, size)


def pair_mask(pair: KeyPair, other: bytes, size: int, *, adds: bool) -> np.ndarray:
    """Return the mask between two nodes, uint64 [size]: one of the two adds it, the other takes it away."""
    mask = _stream(base64.urlsafe_b64decode(pair.secret_with(other)), size)
    return mask if adds else np.negative(mask)


def _stream(key: bytes, size: int) -> np.ndarray:
    stream = Cipher(algorithms.ChaCha20(key, _NONCE), mode=None).encryptor().update(bytes(8 * size))
    return np.frombuffer(stream, dtype="<u8").astype(np.uint64)


def share_out(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """Return `count` shares, any `threshold` of which give the secret and fewer of which say nothing (Shamir)."""
    return create_shares(secret, threshold, count)


def put_together(shares: Sequence[bytes], threshold: int, mark: bytes) -> bytes:
    """Return the secret that shares were made of, as its mark shows.

    A wrong share spoils what it is combined with, so as many combinations are tried as there are shares.

    Raises
    ------
    UpdateRejected
        When no combination gives the secret.
    """
    twice = [*shares, *shares]
    for begin in range(len(shares)) if len(shares) >= threshold else ():
        try:
            secret = combine_shares(twice[begin : begin + threshold])
        except (ValueError, IndexError):  # padding that is none, two shares of one number, a share cut short
            continue
        if mark_of(secret) == mark:
            return secret
    raise UpdateRejected(f"{len(shares)} shares that give no secret", expected=f"{threshold} that fit together")


def seal(pair: KeyPair, reader: bytes, letter: bytes) -> bytes:
    """Return a letter that only the holder of the reader's private key can open, or forge an answer to."""
    return encrypt(pair.secret_with(reader), letter)


def open_sealed(pair: KeyPair, writer: bytes, sealed: bytes) -> bytes:
    """Return the letter.

    Raises
    ------
    UpdateRejected
        When it is not from the writer, or was changed on the way.
    """
    try:
        return decrypt(pair.secret_with(writer), sealed)
    except InvalidToken as error:
        raise UpdateRejected("a sealed letter that cannot be opened", expected="one from the node it names") from error
