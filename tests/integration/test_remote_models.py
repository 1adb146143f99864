"""Models on S3, the click learner's store on this machine: one service answers from both."""

import os
import uuid
from pathlib import Path

import httpx
import pytest

from anabranch.recommender import Recommender
from tests.integration.test_processes import ASK, MODEL, running, until
from tests.server import object_store
from tests.server.serving.conftest import board_store
from tests.server.serving.stores import board_snapshot, new_store, publish, publish_stream

pytestmark = pytest.mark.skipif(os.name != "posix", reason="only POSIX hands a socket to other processes")


def test_every_process_answers_from_both(s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = board_store(tmp_path / "store")

    def answered(client: httpx.Client, user: str) -> dict[str, object]:
        reply = client.post(ASK, json={"user_id": user, "k": 5})
        assert reply.is_success, reply.text
        slate: dict[str, object] = reply.json()
        return slate

    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    address = f"s3://{object_store.BUCKET}/{uuid.uuid4().hex}"
    models = new_store(address)
    publish(models, "v000001", seed=1)
    expected = [(item.item_id, item.score) for item in Recommender.load(here.root).recommend("u1", k=5).items]
    both = Recommender.load(address, stream_store=here.root)
    assert [(item.item_id, item.score) for item in both.recommend("u1", k=5).items] == expected
    assert not Recommender.load(address).recommend("u1", k=5).known_user
    with running(address, "--stream-store", str(here.root)) as service, service.client() as client:
        slate = answered(client, "u1")
        assert slate["known_user"]
        items = slate["items"]
        assert isinstance(items, list)
        assert [(item["item_id"], item["score"]) for item in items] == expected
        assert not answered(client, "u9")["known_user"]
        publish_stream(here.root, "s2", board_snapshot(here.catalogue, users=10))
        until(lambda: answered(client, "u9")["known_user"])
        publish(models, "v000002", seed=2)
        until(lambda: client.get(MODEL).json()["version"] == "v000002")
        assert answered(client, "u9")["known_user"]
