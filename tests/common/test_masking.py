"""Masks that cancel and look like nothing; secrets that enough shares give, and fewer do not."""

import numpy as np
import pytest

from common.errors import UpdateRejected
from common.masking import (
    KeyPair,
    mark_of,
    new_seed,
    open_sealed,
    own_mask,
    pair_mask,
    put_together,
    seal,
    share_out,
)


def chi_square(numbers: np.ndarray) -> float:
    """Return the statistic of all bytes of the numbers against the uniform law; 255 degrees of freedom."""
    counts = np.bincount(np.frombuffer(numbers.astype("<u8").tobytes(), dtype=np.uint8), minlength=256)
    expected = counts.sum() / 256
    return float((np.square(counts - expected) / expected).sum())


CHI_LIMIT = 255 + 6 * np.sqrt(2 * 255)  # six standard deviations


def test_two_nodes_agree_on_a_secret_and_their_masks_cancel() -> None:
    left, right = KeyPair.new(), KeyPair.new()
    assert left.secret_with(right.public) == right.secret_with(left.public)
    total = pair_mask(left, right.public, 1000, adds=True) + pair_mask(right, left.public, 1000, adds=False)
    assert not total.any()
    third = KeyPair.new()
    assert (pair_mask(left, third.public, 1000, adds=True) != pair_mask(left, right.public, 1000, adds=True)).all()


def test_masks_are_uniform_over_the_ring() -> None:
    pair = KeyPair.new()
    assert chi_square(own_mask(new_seed(), 20_000)) < CHI_LIMIT
    assert chi_square(pair_mask(pair, KeyPair.new().public, 20_000, adds=False)) < CHI_LIMIT
    assert chi_square(np.arange(20_000).astype(np.uint64)) > CHI_LIMIT  # the test can fail


def test_a_mask_depends_on_every_byte_of_its_seed() -> None:
    """Flower's own generator folds the seed to 32 bits, so these two would give one mask."""
    seed = new_seed()
    swapped = seed[4:8] + seed[:4] + seed[8:]
    assert swapped != seed
    assert (own_mask(seed, 100) != own_mask(swapped, 100)).all()


def test_a_key_is_its_scalar_again() -> None:
    pair = KeyPair.new()
    assert KeyPair(pair.scalar).public == pair.public


@pytest.mark.parametrize("secret", [KeyPair.new().scalar, new_seed(), b"\x00" * 48], ids=["key", "seed", "zeros"])
def test_enough_shares_give_the_secret_and_fewer_say_nothing(secret: bytes) -> None:
    shares = share_out(secret, 3, 5)
    for chosen in ((0, 1, 2), (4, 2, 0), (1, 2, 3, 4)):
        assert put_together([shares[index] for index in chosen], 3, mark_of(secret)) == secret
    for few in ([], shares[:1], shares[:2]):
        with pytest.raises(UpdateRejected, match="shares that give no secret; expected 3"):
            put_together(few, 3, mark_of(secret))
        if few:
            with pytest.raises(UpdateRejected):
                put_together(few, len(few), mark_of(secret))  # as if the threshold were lower


def test_a_wrong_share_among_enough_right_ones_does_no_harm() -> None:
    secret = new_seed()
    shares = share_out(secret, 3, 5)
    for wrong in (b"", b"short", bytes(len(shares[0])), shares[1][:4] + bytes(len(shares[1]) - 4), shares[2]):
        assert put_together([shares[0], wrong, *shares[2:]], 3, mark_of(secret)) == secret
    with pytest.raises(UpdateRejected):
        put_together([shares[0], bytes(len(shares[0])), shares[1]], 3, mark_of(secret))


def test_a_letter_is_read_by_its_reader_alone_and_comes_from_its_writer() -> None:
    writer, reader, other = KeyPair.new(), KeyPair.new(), KeyPair.new()
    letter = seal(writer, reader.public, b"a share")
    assert open_sealed(reader, writer.public, letter) == b"a share"
    for pair, claimed, sealed in (
        (other, writer.public, letter),
        (reader, other.public, letter),
        (reader, writer.public, letter[:-1]),
        (reader, writer.public, b""),
        (reader, writer.public, letter[:20] + b"A" + letter[21:]),
    ):
        with pytest.raises(UpdateRejected, match="cannot be opened"):
            open_sealed(pair, claimed, sealed)


@pytest.mark.parametrize("bytes_", [b"", b"no key", b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n"])
def test_what_is_no_key_is_refused(bytes_: bytes) -> None:
    with pytest.raises(UpdateRejected, match="no public key"):
        KeyPair.new().secret_with(bytes_)
    with pytest.raises(UpdateRejected, match="no private key"):
        KeyPair(bytes(48))


def test_a_key_of_another_kind_is_refused() -> None:
    ed25519 = (
        b"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n"
        b"-----END PUBLIC KEY-----\n"
    )
    with pytest.raises(UpdateRejected, match="no public key"):
        KeyPair.new().secret_with(ed25519)
