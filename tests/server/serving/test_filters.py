"""What is left out, what is spread out, and what the answer says about itself."""

import json
import stat
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidSetting, ServiceError
from common.recent import Recent
from server.registry import Registry
from server.serving.app import create_app
from server.serving.bundle import Bundle, load_bundle
from server.serving.diversity import spread_out
from server.serving.query import QueryTexts
from server.serving.recommend import Question, Slate, recommend
from server.serving.reload import FixedSource
from server.serving.run import serve_in_thread
from server.serving.slate_log import SlateLog
from tests.oracles.diversity import mmr_slowly
from tests.server.serving.stores import COLD, WordEncoder
from tests.server.serving.test_app import ASK, check_problem


def ask(bundle: Bundle, recent: Recent | None = None, **asked: Any) -> Slate:
    return recommend(bundle, Question(**{"k": 20, **asked}), None, "r1", recent=recent or Recent())


def ids(slate: Slate) -> list[str]:
    return [item.item_id for item in slate.items]


def test_a_filter_leaves_items_out_and_changes_no_score(bundle: Bundle) -> None:
    whole = {item.item_id: item.score for item in ask(bundle, user_id="u0").items}
    order = list(whole)
    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({"categories": ("white",)}, {str(i) for i in range(1, 19, 2)}),
        ({"categories": ("black", "white")}, set(order) - {COLD}),
        ({"allow": ("18", "3", "0")}, {"18", "3"}),  # u0 liked 0
        ({"deny": ("18", "3")}, set(order) - {"18", "3"}),
        ({"allow": ("18", "3"), "deny": ("3",)}, {"18"}),
        ({"allow": ("18", "3"), "categories": ("white",)}, {"3"}),
        ({"categories": ("green",)}, set()),
        ({"allow": ("ghost",)}, set()),
    ]
    for filters, left in cases:
        slate = ask(bundle, user_id="u0", **filters)
        assert ids(slate) == [item for item in order if item in left], filters
        assert all(item.score == whole[item.item_id] for item in slate.items)
        assert [item.rank for item in slate.items] == list(range(1, len(left) + 1))
    assert "0" in ids(ask(bundle, user_id="u0", allow=("0",), exclude_seen=False))


def test_names_that_mean_nothing_are_counted(bundle: Bundle) -> None:
    slate = ask(bundle, history=("ghost", "1"), allow=("1", "x", "y"), deny=("z",), categories=("white", "green"))
    assert slate.ignored == {"unknown_items": 1, "unknown_allow": 2, "unknown_deny": 1, "unknown_categories": 1}
    assert ask(bundle).ignored == {"unknown_items": 0}


def test_the_answer_says_what_it_is_made_of(bundle: Bundle) -> None:
    assert ask(bundle, user_id="nobody").answered_from == ("popularity",)
    assert not ask(bundle, user_id="nobody").known_user
    assert ask(bundle, user_id="u0").answered_from == ("factors", "text", "popularity")
    assert {item.propensity for item in ask(bundle).items} == {1.0}
    assert ask(bundle).policy == "deterministic"


def test_recent_events_count_as_the_snapshots_own(bundle: Bundle) -> None:
    """A user known from clicks since the snapshot is answered as one who gives these clicks with the question."""
    recent = Recent(liked=("1", "3"), tried=("1", "3"), rejected=("5",))
    slate = ask(bundle, recent, user_id="late")
    assert slate.known_user
    given = ask(bundle, user_id="late", history=("1", "3"))
    assert [item for item in ids(given) if item != "5"] == ids(slate)
    assert {item.item_id: item.score for item in slate.items}.items() <= {
        item.item_id: item.score for item in given.items
    }.items()
    assert "5" in ids(ask(bundle, recent, user_id="late", exclude_seen=False))


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=14),
    st.integers(1, 16),
    st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]),
    st.integers(0, 99),
)
def test_spread_out_is_the_definition(scores: list[int], k: int, diversity: float, seed: int) -> None:
    # axes and halves: cosines are exact, so ties are ties in both
    rng = np.random.default_rng(seed)
    vectors = np.eye(4, dtype=np.float32)[rng.integers(0, 4, len(scores))]
    relevance = np.array(scores, dtype=np.float64)
    assert spread_out(relevance, vectors, k, diversity).tolist() == mmr_slowly(relevance, vectors, k, diversity)


def test_diversity_mixes_the_colours(bundle: Bundle) -> None:
    plain = ids(ask(bundle, user_id="u0", k=4))
    assert {int(item) % 2 for item in plain} == {0}
    assert ids(ask(bundle, user_id="u0", k=4, diversity=0.0)) == plain
    mixed = ask(bundle, user_id="u0", k=4, diversity=0.7)
    assert ids(mixed)[0] == plain[0]
    assert {int(item) % 2 for item in ids(mixed)} == {0, 1}
    assert len(set(ids(mixed))) == 4
    for diversity in (-0.1, 1.1, float("nan")):
        with pytest.raises(InvalidSetting, match="diversity"):
            Question(diversity=diversity)
    with pytest.raises(InvalidSetting, match="1001 deny"):
        Question(deny=("x",) * 1_001)


def test_filters_over_http(client: httpx.Client) -> None:
    body = {"user_id": "u0", "k": 3, "categories": ["white"], "deny": ["17"], "diversity": 0}
    assert [item["item_id"] for item in client.post(ASK, json=body).json()["items"]] == ["15", "13", "11"]
    for wrong in (
        {"diversity": 2},
        {"diversity": "0.5"},
        {"categories": "white"},
        {"categories": [""]},
        {"allow": [1]},
        {"deny": ["x"] * 1_001},
    ):
        check_problem(client.post(ASK, json=wrong), 422, "invalid")


def test_slates_are_logged_for_their_owner_alone(store: Registry, tmp_path: Path) -> None:
    slates = SlateLog(tmp_path / "slates")
    app = create_app(
        FixedSource(store, load_bundle(store)),
        QueryTexts(lambda name: WordEncoder()),
        clock=lambda: 86_400_000,
        new_id=lambda: "r1",
        slates=slates,
    )
    with serve_in_thread(app) as running, httpx.Client(base_url=running.url, timeout=60.0) as client:
        answer = client.post(ASK, json={"user_id": "u0", "k": 2, "query": "my secret wish", "explain": True}).json()
        client.get("/v1/users/u1/recommendations")
        path = tmp_path / "slates" / "slates-1970-01-02.jsonl"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert "wish" not in path.read_text()
        first, second = map(json.loads, path.read_text().splitlines())
        assert first["ts"] == 86_400_000
        assert (first["user_id"], first["k"], first["query"], second["user_id"]) == ("u0", 2, True, "u1")
        for name in ("request_id", "model_version", "known_user", "policy", "answered_from"):
            assert first[name] == answer[name]
        kept = ("item_id", "rank", "score", "propensity")
        assert first["items"] == [{name: item[name] for name in kept} for item in answer["items"]]
        # a log that cannot be written costs no answer
        path.unlink()
        path.mkdir()
        assert client.post(ASK, json={}).status_code == 200
        assert slates.lost == 1


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match="cannot be made"):
        SlateLog(tmp_path / "file" / "slates")
