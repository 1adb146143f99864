"""Durable files and immutable folders, undisturbed; `test_store_torn.py` kills the writer."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from common.errors import ArtifactCorrupt
from common.manifests import Manifest
from common.store import (
    MANIFEST_NAME,
    SEAL_NAME,
    array_parts,
    file_sha256,
    pack_arrays,
    publish_folder,
    read_manifest,
    unpack_arrays,
    verify_folder,
    write_atomic,
)

PLAIN = Manifest(kind="adapter", version="v1", parents=(), created_at=5, details={"round": 3})
FILES = {"adapter/weights.bin": b"\x00\x01" * 500, "notes.json": b"{}"}


def names_below(folder: Path) -> set[str]:
    """Return the relative paths of all files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("content", [b"", b"text", os.urandom(200_000)])
def test_write_atomic_creates_replaces_and_leaves_nothing_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "deep" / "er" / "file"
    write_atomic(path, b"old")
    write_atomic(path, content)
    assert path.read_bytes() == content
    assert names_below(tmp_path) == {"deep/er/file"}


def test_a_write_that_fails_leaves_the_old_content_and_no_litter(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").write_bytes(b"old")
    with pytest.raises(OSError, match="folder"):
        # a file cannot take the place of a folder
        write_atomic(tmp_path / "folder", b"new")
    assert names_below(tmp_path) == {"folder/inside"}


def test_a_published_folder_verifies_and_names_its_files(tmp_path: Path) -> None:
    written = publish_folder(tmp_path / "v1", FILES, PLAIN)
    assert verify_folder(tmp_path / "v1") == written == read_manifest(tmp_path / "v1")
    assert dict(written.files) == {name: file_sha256(tmp_path / "v1" / name) for name in FILES}
    assert names_below(tmp_path) == {
        "v1/adapter/weights.bin",
        "v1/notes.json",
        "v1/manifest.json",
        "v1/manifest.sha256",
    }
    assert written.details == {"round": 3}


def test_a_file_in_parts_is_the_same_as_one_that_is_whole(tmp_path: Path) -> None:
    arrays = {"a": np.arange(12.0).reshape(3, 4).T, "none": np.zeros((0, 2), dtype=np.int32), "b": np.ones(3)}
    in_parts = {"arrays": array_parts(arrays), "nothing": []}
    whole = {"arrays": pack_arrays(arrays), "nothing": b""}
    assert publish_folder(tmp_path / "v1", in_parts, PLAIN) == publish_folder(tmp_path / "v2", whole, PLAIN)
    verify_folder(tmp_path / "v1")
    assert (tmp_path / "v1" / "arrays").read_bytes() == whole["arrays"]


def test_a_folder_without_files_is_a_manifest(tmp_path: Path) -> None:
    assert publish_folder(tmp_path / "v1", {}, PLAIN) == verify_folder(tmp_path / "v1")


def test_a_published_folder_is_never_replaced(tmp_path: Path) -> None:
    publish_folder(tmp_path / "v1", FILES, PLAIN)
    with pytest.raises(FileExistsError):
        publish_folder(tmp_path / "v1", {"notes.json": b"other"}, PLAIN)
    assert (tmp_path / "v1" / "notes.json").read_bytes() == b"{}"
    assert names_below(tmp_path) == {
        "v1/adapter/weights.bin",
        "v1/notes.json",
        "v1/manifest.json",
        "v1/manifest.sha256",
    }


def test_a_publication_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"notes\.json"):
        # a file and a folder of one name
        publish_folder(tmp_path / "v1", {"notes.json": b"{}", "notes.json/below": b""}, PLAIN)
    assert names_below(tmp_path) == set()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [*sorted(FILES), MANIFEST_NAME])
@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "remove"])
def test_any_damage_is_found_and_the_file_named(tmp_path: Path, name: str, damage: str) -> None:
    publish_folder(tmp_path / "v1", FILES, PLAIN)
    path = tmp_path / "v1" / name
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        changed = {"flip": bytes([content[0] ^ 1]) + content[1:], "cut": content[:-1], "grow": content + b"\n"}
        path.write_bytes(changed[damage])
    with pytest.raises(ArtifactCorrupt, match=Path(name).name):
        verify_folder(tmp_path / "v1")


def test_every_flipped_byte_is_found_that_of_a_number_in_the_manifest_too(tmp_path: Path) -> None:
    publish_folder(tmp_path / "v1", {"notes.json": b"{}"}, PLAIN)
    for path in sorted(path for path in (tmp_path / "v1").iterdir()):
        whole = path.read_bytes()
        for at in range(len(whole)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(ArtifactCorrupt):
                verify_folder(tmp_path / "v1")
        path.write_bytes(whole)
    verify_folder(tmp_path / "v1")


def test_an_artifact_of_before_there_were_seals_is_read(tmp_path: Path) -> None:
    written = publish_folder(tmp_path / "v1", FILES, PLAIN)
    (tmp_path / "v1" / SEAL_NAME).unlink()
    assert verify_folder(tmp_path / "v1") == written


@pytest.mark.parametrize("raw", [None, b"", b"{}", b"not json"])
def test_a_folder_without_a_whole_manifest_is_corrupt(tmp_path: Path, raw: bytes | None) -> None:
    publish_folder(tmp_path / "v1", FILES, PLAIN)
    path = tmp_path / "v1" / MANIFEST_NAME
    path.unlink() if raw is None else path.write_bytes(raw)
    with pytest.raises(ArtifactCorrupt):
        verify_folder(tmp_path / "v1")


shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
arrays = st.dictionaries(
    st.text("abcdef._", min_size=1, max_size=6),
    st.builds(
        lambda shape, dtype, seed: np.random.default_rng(seed).integers(-9, 9, shape).astype(dtype),
        shapes,
        st.sampled_from(["float32", "float64", "int64", "int32", "uint8"]),
        st.integers(0, 99),
    ),
    max_size=4,
)


@given(arrays)
def test_packed_arrays_come_back_and_the_same_arrays_give_the_same_bytes(named: dict[str, np.ndarray]) -> None:
    raw = pack_arrays(named)
    assert raw == pack_arrays(dict(reversed(named.items())))
    found = unpack_arrays(raw, "here")
    assert found.keys() == named.keys()
    for name, array in named.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


TYPES = "bool uint8 int8 int16 uint16 float16 int32 uint32 float32 float64 int64 uint64".split()
named_arrays = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    st.builds(
        lambda shape, dtype: np.arange(np.prod(shape)).reshape(shape).astype(dtype), shapes, st.sampled_from(TYPES)
    ),
    max_size=5,
)


@given(named_arrays)
def test_packed_arrays_are_byte_for_byte_what_the_library_writes(named: dict[str, np.ndarray]) -> None:
    assert pack_arrays(named) == save(named)
    assert pack_arrays({name: array.astype(array.dtype.newbyteorder(">")) for name, array in named.items()}) == save(
        named
    )


def test_a_type_that_the_format_does_not_know_is_refused() -> None:
    with pytest.raises(KeyError, match="complex128"):
        pack_arrays({"a": np.ones(2, dtype=np.complex128)})


def test_packing_does_not_depend_on_memory_layout() -> None:
    square = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert pack_arrays({"a": square}) == pack_arrays({"a": np.asfortranarray(square)})
    np.testing.assert_array_equal(unpack_arrays(pack_arrays({"a": square.T}), "here")["a"], square.T)


@given(st.data())
def test_a_cut_or_made_up_file_is_corrupt_never_another_exception(data: st.DataObject) -> None:
    raw = pack_arrays({"a": np.arange(5.0), "b": np.ones((2, 2), dtype=np.float32)})
    cut = raw[: data.draw(st.integers(0, len(raw) - 1))]
    for bad in (cut, data.draw(st.binary(max_size=60))):
        with pytest.raises(ArtifactCorrupt, match="here"):
            unpack_arrays(bad, "here")
