"""Manifests: written, read back, refused."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ArtifactCorrupt
from common.manifests import FORMAT, Manifest, TensorSpec, decode_manifest, encode_manifest
from common.privacy import PrivacyClaim

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
claims = st.builds(
    PrivacyClaim,
    unit=st.sampled_from(["user", "example", "client", "off"]),
    epsilon=st.none() | st.floats(0, 100),
    delta=st.none() | st.floats(0, 1),
    budget=st.none() | st.floats(0, 100),
    accountant=words,
)
manifests = st.builds(
    Manifest,
    kind=words,
    version=words,
    parents=st.lists(words, max_size=3).map(tuple),
    created_at=st.integers(0, 2**53),
    tensors=st.dictionaries(
        words,
        st.builds(TensorSpec, st.lists(st.integers(0, 99), max_size=3).map(tuple), st.just("float32")),
        max_size=3,
    ),
    files=st.dictionaries(words, words, max_size=3),
    metrics=st.dictionaries(words, st.dictionaries(words, scalars, max_size=2), max_size=2),
    privacy=st.none() | claims,
    details=st.dictionaries(words, scalars, max_size=3),
)
PLAIN = Manifest(kind="adapter", version="v1", parents=(), created_at=5)


@given(manifests)
def test_what_is_encoded_is_decoded_again(manifest: Manifest) -> None:
    assert decode_manifest(encode_manifest(manifest), "here") == manifest


@given(st.binary(max_size=100))
def test_any_bytes_are_a_manifest_or_corrupt(raw: bytes) -> None:
    with pytest.raises(ArtifactCorrupt, match="here"):
        decode_manifest(raw, "here")


@given(st.data())
def test_a_cut_manifest_is_corrupt(data: st.DataObject) -> None:
    raw = encode_manifest(PLAIN)
    # without the last line feed it is still whole
    cut = data.draw(st.integers(0, len(raw) - 2))
    with pytest.raises(ArtifactCorrupt):
        decode_manifest(raw[:cut], "here")


def test_another_format_is_refused_not_guessed_at() -> None:
    raw = encode_manifest(replace(PLAIN, format=FORMAT + 1))
    with pytest.raises(ArtifactCorrupt, match=f"format {FORMAT + 1}; expected format {FORMAT}"):
        decode_manifest(raw, "here")


def test_people_can_read_it() -> None:
    assert b'\n  "version": "v1"' in encode_manifest(PLAIN)
