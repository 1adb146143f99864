"""The same answers in Python as over HTTP; the text model is loaded for a query and for nothing else."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from anabranch.recommender import Recommender, lazy_queries
from common.encoder.adapter import TextEncoder
from common.encoder.spec import EncoderSpec
from common.errors import EncoderError, InvalidSetting, NoModel, VersionNotFound
from common.ids import rng_for
from common.items import Catalogue, Item
from common.manifests import Manifest
from common.store import pack_arrays
from server.registry import Registry
from server.serving.app import create_app
from server.serving.bundle import ADAPTER_FILE, VECTORS_FILE, VECTORS_TENSOR
from server.serving.query import QueryTexts
from server.serving.recommend import slate_payload
from server.serving.reload import FixedSource
from server.serving.run import serve_in_thread
from server.store_info import StoreInfo
from tests.server.serving.conftest import board_store
from tests.server.serving.stores import COLD, WordEncoder, board_snapshot, publish, publish_stream

FILMS = (
    ("alien", "Alien: a crew in space is hunted by a creature"),
    ("wall", "Wall Street: stock brokers, money and greed"),
    ("titanic", "Titanic: a love story on a sinking ship"),
    ("babe", "Babe: a small pig learns to herd sheep on a farm"),
)
FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"exclude_seen": False, "diversity": 0.6},
    {"categories": ["white"], "deny": ["3", "ghost"], "allow": [str(number) for number in range(12)]},
)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Make a store with the real text encoder and an adapter that does something."""
    encoder = TextEncoder.load(EncoderSpec.default())
    adapter = {
        name: (array + 0.02 * rng_for("films", name).standard_normal(array.shape)).astype(np.float32)
        for name, array in encoder.adapter().items()
    }
    encoder.set_adapter(adapter)
    catalogue = Catalogue(Item(name, text.partition(":")[0], text) for name, text in FILMS)
    info = StoreInfo(encoder.spec.name, encoder.sha256, "films", 1_000)
    registry = Registry.create(tmp_path_factory.mktemp("films") / "store", info, catalogue)
    files = {
        ADAPTER_FILE: pack_arrays(adapter),
        VECTORS_FILE: pack_arrays({VECTORS_TENSOR: encoder.encode(catalogue.texts)}),
    }
    registry.publish(
        files, Manifest("adapter", "v000001", (), 2_000, base_encoder=info.encoder, base_sha256=info.encoder_sha256)
    )
    registry.point("current", "v000001")
    return registry


def test_the_real_encoder_finds_films_by_what_they_are_about(films: Registry) -> None:
    recommender = Recommender.load(films.root, device="cpu")
    for query, expected in (("astronauts and monsters", "alien"), ("farm animals", "babe"), ("finance", "wall")):
        assert recommender.recommend(query=query, k=1).items[0].item_id == expected
    # an item's own text, under the adapter, is that item's vector
    own = lazy_queries("cpu").vector(recommender.bundle.model, FILMS[2][1])
    assert own == pytest.approx(recommender.bundle.model.item_vectors[2], abs=1e-5)


def test_http_and_python_agree_with_the_real_encoder(films: Registry) -> None:
    recommender = Recommender.load(films.root, device="cpu")
    app = create_app(FixedSource(films, recommender.bundle), lazy_queries("cpu"))
    slate = slate_payload(recommender.recommend(query="a ship", history=["alien"], k=3, explain=True), explain=True)
    body = {"query": "a ship", "history": ["alien"], "k": 3, "explain": True}
    with serve_in_thread(app) as running:
        answer = httpx.post(f"{running.url}/v1/recommendations", json=body, timeout=60.0).json()
    assert [item["item_id"] for item in answer["items"]] == [item["item_id"] for item in slate["items"]]
    for over_http, here in zip(answer["items"], slate["items"], strict=True):
        assert over_http["score"] == pytest.approx(here["score"], abs=1e-4)
        assert len(over_http["reasons"]) == len(here["reasons"])


def test_http_and_python_agree_on_every_kind_of_question(tmp_path: Path) -> None:
    registry = board_store(tmp_path / "store")
    plain = Recommender.load(registry.root)
    recommender = Recommender(plain.bundle, QueryTexts(lambda name: WordEncoder()), new_id=lambda: "r1")
    app = create_app(FixedSource(registry, plain.bundle), QueryTexts(lambda name: WordEncoder()), new_id=lambda: "r1")
    with serve_in_thread(app) as running, httpx.Client(base_url=running.url, timeout=60.0) as client:
        for user in (None, "u0", "nobody"):
            for history in ((), ("1", "ghost")):
                for query in (None, "yellow submarine"):
                    for filters in FILTERS:
                        body = {"user_id": user, "history": history, "query": query, "k": 7, "explain": True}
                        answer = client.post("/v1/recommendations", json={**body, **filters}).json()
                        slate = recommender.recommend(user, history, query, 7, explain=True, **filters)
                        here = slate_payload(slate, explain=True)
                        for item in here["items"]:
                            item["reasons"] = list(item["reasons"])
                        assert answer == {**here, "items": list(here["items"])}
        similar = client.get("/v1/items/1/similar", params={"k": 4}).json()
        assert [item["item_id"] for item in similar["items"]] == [
            item.item_id for item in recommender.similar("1", 4).items
        ]


def test_the_encoder_is_loaded_once_and_only_for_a_query(tmp_path: Path) -> None:
    loads: list[str] = []

    def load(name: str) -> WordEncoder:
        loads.append(name)
        return WordEncoder()

    bundle = Recommender.load(board_store(tmp_path / "store").root).bundle
    recommender = Recommender(bundle, QueryTexts(load))
    recommender.recommend(user="u0", history=["1"])
    recommender.similar("1")
    assert loads == []
    assert recommender.recommend(query="submarine", k=1).items[0].item_id == COLD
    recommender.recommend(query="board")
    assert loads == ["words"]


def test_a_loaded_recommender_keeps_its_version(tmp_path: Path) -> None:
    registry = board_store(tmp_path / "store")
    recommender = Recommender.load(str(registry.root))
    before = recommender.recommend(user="u0").items
    publish(registry, "v000002", seed=2)
    publish_stream(registry.root, "s2", board_snapshot(registry.catalogue, users=1))
    assert recommender.version == "v000001"
    assert recommender.recommend(user="u0").items == before
    assert Recommender.load(registry.root).version == "v000002"
    assert Recommender.load(registry.root, version="v000001").version == "v000001"


def test_what_cannot_be_answered(tmp_path: Path) -> None:
    with pytest.raises(NoModel, match="is no model store"):
        Recommender.load(tmp_path / "nothing")
    registry = board_store(tmp_path / "store")
    with pytest.raises(VersionNotFound, match="one of v000001"):
        Recommender.load(registry.root, version="v9")
    recommender = Recommender.load(registry.root)
    for wrong in (0, 501):
        with pytest.raises(InvalidSetting, match=f"k = {wrong}"):
            recommender.recommend(k=wrong)
    # the board's base encoder, "words", is none that this machine could find
    with pytest.raises(EncoderError, match="'words'"):
        recommender.recommend(query="black")
