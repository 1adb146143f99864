"""Publishing through the gate: what is worse stays in the store and stays out of the way."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.encoder.adapter import TextEncoder
from common.encoder.cache import open_or_build
from common.encoder.spec import EncoderSpec
from common.errors import ArtifactCorrupt
from common.instructions import Objective, PrivacyTerms
from common.items import Catalogue, Item
from common.manifests import Manifest
from common.store import pack_arrays
from server.artifact import ITEM_ROWS, ITEM_VECTORS
from server.evaluate import build_test
from server.registry import CURRENT, Registry
from server.release import Publisher, is_promoted
from server.rounds import RunPlan, RunState
from server.serving.bundle import load_model
from server.store_info import StoreInfo
from tests.encoders import WORDS

GROUPS, EACH, USERS = 4, 8, 40
ITEMS = GROUPS * EACH


def vectors_of_groups() -> np.ndarray:
    """Return vectors that know the groups that users like."""
    return np.repeat(np.eye(GROUPS, 32, dtype=np.float32), EACH, axis=0)


def vectors_of_nothing() -> np.ndarray:
    """Return vectors by which all items tie, which ranks the clicked one last."""
    return np.ones((ITEMS, 32), dtype=np.float32)


class Shop:
    """A store whose users each like one group of items, and a publisher of versions of a tiny random BERT."""

    def __init__(self, bert: Path, folder: Path) -> None:
        texts = [f"{WORDS[row]} {WORDS[-1 - row]}" for row in range(ITEMS)]
        encoder = TextEncoder.load(EncoderSpec.from_name(str(bert)))
        catalogue = Catalogue(Item(f"i{row}", text, text) for row, text in enumerate(texts))
        self.registry = Registry.create(folder / "store", StoreInfo("tiny", encoder.sha256, "x", 1), catalogue)
        liked = [(f"u{user}", EACH * (user % GROUPS) + each) for user in range(USERS) for each in range(EACH)]
        train = [click for number, click in enumerate(liked) if number % EACH < 3]
        test = [click for number, click in enumerate(liked) if number % EACH >= 3]
        plan = RunPlan("run", 0, 9, 1, "fedsvd", 0.01, encoder.sha256, Objective(), PrivacyTerms("off"))
        self._times = iter(range(100, 200))
        events = build_test(train, test, ITEMS)
        cache = open_or_build(folder / "cache", encoder, texts)
        self.publisher = Publisher(self.registry, encoder, cache, events, {}, plan, lambda: next(self._times))
        self._adapter = {name: np.zeros_like(array) for name, array in encoder.adapter().items()}
        self._encoder = encoder

    def publish(self, number: int) -> Manifest:
        return self.publisher.publish(RunState(number, self._adapter, {}))

    def put(self, version: str, vectors: np.ndarray) -> None:
        """Let a version with these item vectors be the current one."""
        made = Manifest("adapter", version, (), next(self._times), "tiny", self._encoder.sha256)
        self.registry.publish({ITEM_VECTORS: pack_arrays({"item_vectors": vectors})}, made)
        self.registry.point(CURRENT, version)


@pytest.fixture
def shop(tiny_bert: Path, tmp_path: Path) -> Shop:
    return Shop(tiny_bert, tmp_path)


def test_the_first_version_is_promoted(shop: Shop) -> None:
    manifest = shop.publish(1)
    assert manifest.details["promoted"] is True
    assert shop.registry.pointer(CURRENT) == "v000001"


def test_a_version_of_many_items_carries_what_services_would_work_out(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ITEM_ROWS not in shop.publish(1).files
    monkeypatch.setattr("server.serving.coarse.LEAST_ROWS", ITEMS)
    assert ITEM_ROWS in shop.publish(2).files
    model = load_model(shop.registry, "v000002")
    assert model.coarse is not None
    assert len(model.coarse.codes) == ITEMS


def test_a_version_that_is_worse_is_kept_and_says_why(shop: Shop) -> None:
    shop.put("good", vectors_of_groups())
    manifest = shop.publish(1)
    assert shop.registry.pointer(CURRENT) == "good"
    assert manifest == shop.registry.verify("v000001")  # whole, and there for whoever wants it
    assert manifest.details["promoted"] is False
    assert "worse than that of good" in manifest.details["reason"]
    assert manifest.details["gate"]["ci95"][1] < 0
    assert manifest.details["gate"]["difference"] < 0


def test_a_version_that_is_better_takes_over(shop: Shop) -> None:
    shop.put("bad", vectors_of_nothing())
    manifest = shop.publish(1)
    assert shop.registry.pointer(CURRENT) == "v000001"
    assert "better than that of bad" in manifest.details["reason"]


def test_publishing_again_neither_promotes_nor_judges_anew(shop: Shop) -> None:
    shop.put("good", vectors_of_groups())
    held = shop.publish(1)
    assert shop.publish(1) == held
    assert shop.registry.pointer(CURRENT) == "good"
    shop.registry.point(CURRENT, "v000001")  # whoever promotes it by hand is obeyed
    shop.publish(1)
    assert shop.registry.pointer(CURRENT) == "v000001"


def test_a_death_between_writing_and_pointing_is_made_good(shop: Shop) -> None:
    shop.put("bad", vectors_of_nothing())
    shop.publish(1)
    shop.registry.point(CURRENT, "bad")  # as if it had died before the pointer moved
    shop.publish(1)
    assert shop.registry.pointer(CURRENT) == "v000001"


def test_versions_held_back_in_a_row_are_counted(shop: Shop) -> None:
    assert shop.publisher.held_back_in_a_row() == 0
    shop.put("good", vectors_of_groups())
    for number in (1, 2):
        shop.publish(number)
        assert shop.publisher.held_back_in_a_row() == number
    shop.put("bad", vectors_of_nothing())
    assert is_promoted(shop.publish(3))
    assert shop.publisher.held_back_in_a_row() == 0


def test_a_damaged_current_version_stops_nobody(shop: Shop) -> None:
    shop.put("good", vectors_of_groups())
    path = shop.registry.folder("good") / ITEM_VECTORS
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    manifest = shop.publish(1)
    assert shop.registry.pointer(CURRENT) == "v000001"
    assert "cannot be compared with" in manifest.details["reason"]


def test_a_damaged_older_version_stops_nobody(shop: Shop) -> None:
    shop.publish(1)
    shop.publish(2)
    path = shop.registry.folder("v000001") / "manifest.json"
    path.write_bytes(path.read_bytes()[:-2] + b"}\n\n")
    manifest = shop.publish(3)
    assert manifest.parents == ("v000002",)
    assert shop.publisher.held_back_in_a_row() >= 0
    with pytest.raises(ArtifactCorrupt, match="v000001"):
        shop.registry.versions()


def test_slices_are_in_the_manifest(shop: Shop) -> None:
    owner = {f"u{user}": user % 5 for user in range(USERS)}
    shop.publisher = replace(shop.publisher, owner=owner)
    slices = shop.publish(1).details["slices"]
    assert set(slices) == {"cold", "cold_in_catalogue", "tail", "head", "clients"}
    assert slices["clients"]["global"]["clients"] == 5
    assert slices["cold"]["global"]["events"] > 0
