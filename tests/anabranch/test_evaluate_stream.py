"""`anabranch evaluate stream`, in little."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from anabranch.commands.evaluate import app
from anabranch.evaluation_stream import StreamEvaluationSettings, Texts, cold_items, evaluate_stream, texts_of
from anabranch.evaluation_stream_report import compose, findings
from anabranch.report import to_html, to_markdown
from common.datasets.synthetic import SyntheticSpec, make_synthetic
from common.errors import InvalidSetting, UnknownName

SPEC = SyntheticSpec(users=60, items=300, events=2_500)
SETTINGS = StreamEvaluationSettings(ease_every=(300,), window=200, cold_share=0.3)


@pytest.fixture(scope="module")
def payload() -> dict[str, object]:
    """Give a whole evaluation, with texts that say which category an item is of."""
    dataset = make_synthetic(SPEC, seed=0)
    rng = np.random.default_rng(0)
    groups = {name: rng.standard_normal(12) for item in dataset.catalogue for name in item.categories}
    vectors = {
        item.item_id: sum((groups[name] for name in item.categories), 0.1 * rng.standard_normal(12))
        for item in dataset.catalogue
    }
    return evaluate_stream(dataset, SETTINGS, Texts(vectors, "made up")).as_json()


def test_every_row_has_its_figures(payload: dict[str, dict[str, dict[str, object]]]) -> None:
    rows = payload["rows"]
    controls = {"random", "popularity", "popularity_decayed", "river_mf_negatives", "item_knn", "ease_300"}
    controls |= {"neighbours", "pointwise_mf"}
    assert controls == set(payload["controls"])
    assert {"ours", "ours_without_content", "neighbours", "factors", "content"} <= set(rows)
    assert len({row["evaluated"] for row in rows.values()}) == 1
    for name in rows:
        assert set(payload["slices"][name]) == {"user_history", "item_history", "moment"}
        assert name == "ours" or set(payload["against"][name]) == {"difference", "ci95", "mcnemar"}
    assert float(str(rows["ours"]["recall@10"])) > float(str(rows["random"]["recall@10"]))
    json.dumps(payload, allow_nan=False)


def test_cold_items_are_found_by_their_texts(payload: dict[str, dict[str, object]]) -> None:
    cold = payload["cold"]
    assert set(cold["rows"]) == {"random", "zero_shot", "ours", "ours_without_content", "content"}  # type: ignore[call-overload]  # a mapping
    assert float(str(cold["times_random"])) > 1.0


def test_the_report_says_what_is_worse_first(payload: dict[str, dict[str, dict[str, object]]]) -> None:
    markdown = to_markdown(compose(payload))
    for words in ("Findings", "McNemar", "EASE refitted every 300 likes", "by the item's likes before", "Protocol"):
        assert words in markdown
    assert "<svg" in to_html(compose(payload))
    turned = {**payload, "against": {name: {**each, "ci95": [-0.2, -0.1]} for name, each in payload["against"].items()}}
    sentences, bad = findings(turned)
    assert sentences[0].startswith("WORSE than the control random")
    assert 0 in bad


def test_cold_items_are_the_same_whatever_else_there_is() -> None:
    some, more = {f"i{n}" for n in range(300)}, {f"i{n}" for n in range(600)}
    assert cold_items(some, 0.2, 0) == cold_items(more, 0.2, 0) & some
    assert 30 < len(cold_items(some, 0.2, 0)) < 90
    with pytest.raises(InvalidSetting, match="cold_share 1"):
        StreamEvaluationSettings(cold_share=1.0)


def test_only_the_rows_that_are_wanted() -> None:
    dataset = make_synthetic(SyntheticSpec(users=10, items=30, events=200), seed=0)
    found = evaluate_stream(dataset, replace(SETTINGS, rows=("popularity",))).as_json()
    assert set(found["rows"]) == {"ours", "popularity"}
    with pytest.raises(UnknownName, match="row 'best'"):
        evaluate_stream(dataset, replace(SETTINGS, rows=("best",)))


def test_stars_bring_the_rows_that_need_them() -> None:
    """River's factorisation learns stars; told likes only, ours is another one where something was rated low."""
    made = make_synthetic(SyntheticSpec(users=10, items=30, events=200), seed=0)
    rated = replace(
        made,
        interactions=tuple(
            replace(event, action="rating", value=3.0 + number % 3) for number, event in enumerate(made.interactions)
        ),
    )
    settings = replace(SETTINGS, rows=("river_mf", "ours_likes_only"))
    found = evaluate_stream(rated, settings).as_json()
    assert set(found["rows"]) == {"ours", "ours_likes_only", "river_mf"}
    assert set(found["against_likes_only"]) == {"river_mf"}
    with pytest.raises(UnknownName, match="row 'river_mf'"):
        evaluate_stream(made, settings)


def test_no_texts_are_no_texts(tmp_path: Path) -> None:
    assert texts_of(make_synthetic(SPEC, seed=0), "none", tmp_path).vectors == {}


def test_the_command_writes_its_report(tmp_path: Path) -> None:
    given = ["stream", "--quick", "--texts", "none", "--events", "0", "--store", str(tmp_path), "--json"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["rows"]["ours"]["recall@10"] > told["rows"]["popularity"]["recall@10"]
    assert told["cold"] is None
    for suffix in ("html", "md", "json"):
        assert (tmp_path / "report" / f"stream-evaluation.{suffix}").is_file()
