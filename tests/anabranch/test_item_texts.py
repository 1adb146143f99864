"""Each version's texts are told once, and what cannot be read stops nobody."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from anabranch.item_texts import NewestTexts
from server.serving.bundle import VECTORS_FILE, load_model
from server.store_info import CATALOGUE_NAME
from tests.server.serving.stores import checker_board, new_store, publish


def test_each_version_is_told_once(tmp_path: Path) -> None:
    newest = NewestTexts(tmp_path / "store", pytest.fail)
    assert newest() is None
    registry = new_store(tmp_path / "store")
    assert newest() is None
    for number in (1, 2):
        publish(registry, f"v{number}", seed=number)
        texts = newest()
        assert texts is not None
        assert texts.ids == registry.catalogue.ids
        np.testing.assert_array_equal(texts.vectors, load_model(registry, f"v{number}").item_vectors)
        assert newest() is None
    registry.point("current", "v1")
    assert newest() is not None


def test_the_catalogue_is_read_once_and_anew_where_another_store_lies_there(tmp_path: Path) -> None:
    newest = NewestTexts(tmp_path / "store", pytest.fail)
    registry = new_store(tmp_path / "store")
    for version in ("v1", "v2"):
        publish(registry, version)
        texts = newest()
        assert texts is not None
        assert texts.ids == registry.catalogue.ids
        (tmp_path / "store" / CATALOGUE_NAME).unlink(missing_ok=True)  # whoever read it again would miss it
    shutil.rmtree(tmp_path / "store")
    assert newest() is None
    other = new_store(tmp_path / "store", checker_board(22))
    publish(other, "v2")
    texts = newest()
    assert texts is not None
    assert texts.ids == other.catalogue.ids
    assert len(texts.vectors) == 22


def test_a_version_that_cannot_be_read_is_said_and_passed_over(tmp_path: Path) -> None:
    registry = new_store(tmp_path)
    publish(registry, "v1")
    path = registry.folder("v1") / VECTORS_FILE
    path.write_bytes(path.read_bytes()[:-1])
    notices: list[str] = []
    newest = NewestTexts(tmp_path, notices.append)
    assert newest() is None
    assert newest() is None
    assert len(notices) == 1
    assert "v1" in notices[0]
    publish(registry, "v2", seed=2)
    assert newest() is not None
