"""`anabranch evaluate forgetting`, in little."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from anabranch.commands.evaluate import app
from anabranch.evaluation_forgetting import (
    ForgettingEvaluationSettings,
    evaluate_forgetting,
    quick,
)
from anabranch.evaluation_forgetting_report import compose, findings
from anabranch.evaluation_stream import Texts
from anabranch.report import to_html, to_markdown
from common.datasets.synthetic import SyntheticSpec, make_synthetic
from common.errors import UnknownName
from stream.forgetting import ForgettingSettings

SPEC = SyntheticSpec(users=50, items=250, events=2_000)
SETTINGS = ForgettingEvaluationSettings(ForgettingSettings(windows=3))


@pytest.fixture(scope="module")
def payload() -> dict[str, Any]:
    """Give a whole evaluation."""
    return evaluate_forgetting(make_synthetic(SPEC, seed=0), SETTINGS).as_json()


def test_every_row_has_its_matrix(payload: dict[str, Any]) -> None:
    assert list(payload["rows"]) == ["ours", "mf", "mf_replay", "frozen", "fine_tune", "refit"]
    assert payload["controls"] == ["frozen", "fine_tune", "refit"]
    for name, row in payload["rows"].items():
        assert [len(cells) for cells in row["matrix"]] == [3, 3, 3]
        assert row["evaluated"] == payload["protocol"]["test_events"]
        assert name == "ours" or set(payload["against"][name]) == {"average", "plasticity", "backward", "forward"}
    frozen, ours = payload["rows"]["frozen"]["matrix"], payload["rows"]["ours"]["matrix"]
    assert frozen[0] == frozen[2] == ours[0]
    windows = payload["protocol"]["windows"]
    assert sum(each["tested"] for each in windows) == payload["protocol"]["test_events"]
    json.dumps(payload, allow_nan=False)


def test_ours_learns_more_than_the_frozen_one(payload: dict[str, Any]) -> None:
    rows = payload["rows"]
    assert rows["ours"]["average"]["value"] > rows["frozen"]["average"]["value"]
    assert payload["against"]["frozen"]["average"]["ci95"][0] > 0


def test_the_report_says_what_is_worse_first(payload: dict[str, Any]) -> None:
    markdown = to_markdown(compose(payload))
    for words in ("Findings", "MF alone: recall@10", "backward transfer", "taught windows", "held out every"):
        assert words in markdown
    assert "<svg" in to_html(compose(payload))
    measure = {"value": -0.15, "ci95": [-0.2, -0.1]}
    turned = {
        **payload,
        "against": {name: dict.fromkeys(each, measure) for name, each in payload["against"].items()},
        "rows": {**payload["rows"], "ours": {**payload["rows"]["ours"], "backward": measure}},
    }
    sentences, bad = findings(turned)
    assert (
        sentences[0] == "Recall at the end WORSE than that of MF alone, MF with replay, frozen, fine-tune only, refit."
    )
    assert sentences[-1].startswith("Ours forgets old windows: backward transfer -0.1500")
    assert bad == frozenset(range(len(sentences)))


def test_only_the_rows_that_are_wanted() -> None:
    few = SyntheticSpec(users=10, items=30, events=300)
    settings = ForgettingEvaluationSettings(ForgettingSettings(windows=2), rows=("fine_tune",))
    assert set(evaluate_forgetting(make_synthetic(few, seed=0), settings).as_json()["rows"]) == {"ours", "fine_tune"}
    with pytest.raises(UnknownName, match="row 'best'"):
        evaluate_forgetting(make_synthetic(few, seed=0), ForgettingEvaluationSettings(rows=("best",)))
    with pytest.raises(UnknownName, match="row 'refit'"):
        evaluate_forgetting(
            make_synthetic(few, seed=0), ForgettingEvaluationSettings(ease_most_items=5, rows=("refit",))
        )


def test_texts_are_a_row_of_their_own() -> None:
    few = make_synthetic(SyntheticSpec(users=20, items=30, events=600), seed=0)
    rng = np.random.default_rng(0)
    texts = Texts({item: rng.standard_normal(8) for item in few.catalogue.ids}, "made up")
    settings = ForgettingEvaluationSettings(ForgettingSettings(windows=2), rows=("mf_texts",))
    rows = evaluate_forgetting(few, settings, texts).as_json()["rows"]
    assert set(rows) == {"ours", "mf_texts"}
    assert rows["mf_texts"]["average"]["value"] > 0
    with pytest.raises(UnknownName, match="row 'mf_texts'"):
        evaluate_forgetting(few, settings)


def test_the_quick_one_takes_fewer_events() -> None:
    assert quick(SETTINGS).events == 3_000
    assert quick(SETTINGS).examination == SETTINGS.examination


def test_the_command_writes_its_report(tmp_path: Path) -> None:
    arguments = ["forgetting", "--quick", "--events", "900", "--windows", "2", "--rows", "mf", "--texts", "none"]
    done = CliRunner().invoke(app, [*arguments, "--store", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    payload = json.loads(done.stdout)
    assert len(payload["rows"]["mf"]["matrix"]) == 2
    assert Path(payload["report"]).read_text("utf-8").startswith("<!DOCTYPE html>")
    assert json.loads((tmp_path / "report" / "forgetting.json").read_text("utf-8"))["rows"] == payload["rows"]
    drawn = CliRunner().invoke(app, [*arguments, "--store", str(tmp_path), "--hold-out", "3"])
    assert drawn.exit_code == 0, drawn.output
    assert "MF alone: recall@10" in drawn.stdout
    assert "report: " in drawn.stdout
