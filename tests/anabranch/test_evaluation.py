"""The federated evaluation whole: real runs, interrupted and gone on; figures that agree with what was stored."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from anabranch.evaluation import Evaluation, FederatedEvaluation, Row, save_json
from anabranch.evaluation_report import compose, findings
from anabranch.evaluation_settings import CENTRALISED, FEDERATED, EvaluationSettings, quick, row_name
from anabranch.parts import Parts, owners
from anabranch.report import to_html, to_markdown
from anabranch.simulation import SimulationSettings
from common.datasets.base import Dataset
from common.datasets.synthetic import SyntheticSpec, make_synthetic
from common.errors import InvalidSetting, StoreMismatch, UnknownName
from common.instructions import Objective, PrivacyTerms
from server.artifact import ITEM_VECTORS
from server.evaluate import Ranking, build_test, by_text, quality_of, rank
from server.registry import Registry
from server.slices import slices_of
from tests.house.tree import command

PRIVATE = "user_epsilon_8"


def data() -> Dataset:
    return make_synthetic(SyntheticSpec(users=40, items=40, events=1000), 0)


def settings_for(bert: Path) -> EvaluationSettings:
    base = SimulationSettings(
        clients=3,
        cohort=2,
        rounds=2,
        privacy=PrivacyTerms("user", 1.0, 1e-3, 0.5),
        objective=Objective(window=4, negatives=3),
        encoder=str(bert),
        device="cpu",
        workers=1,
        evaluate_every=1,
        hide_cold=0.2,
    )
    return EvaluationSettings(base, epsilons=(8.0,))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation") / "store"


@pytest.fixture(scope="module")
def evaluation(tiny_bert: Path, store: Path) -> Evaluation:
    """Interrupt it in the second trained row, then go on."""

    def interrupt(text: str) -> None:
        if text.startswith(f"{FEDERATED}: round 1/2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FederatedEvaluation(data(), store, settings_for(tiny_bert), note=interrupt).run()
    notes: list[str] = []
    done = FederatedEvaluation(data(), store, settings_for(tiny_bert), note=notes.append).run()
    # what was done is not done again, and what was begun goes on
    assert any(f"{CENTRALISED}: all 2 federated rounds are in the store" in note for note in notes)
    first = next(note for note in notes if note.startswith(f"{FEDERATED}: round"))
    assert first.startswith(f"{FEDERATED}: round 2/2")
    return done


def test_every_row_is_there_in_order(evaluation: Evaluation) -> None:
    assert list(evaluation.rows) == [
        *("random", "popularity", "item_knn", "item_knn_recent", "zero_shot"),
        *(CENTRALISED, FEDERATED, PRIVATE),
    ]


def test_the_json_has_its_keys_and_only_finite_numbers(evaluation: Evaluation, tmp_path: Path) -> None:
    payload = evaluation.as_json()
    json.dumps(payload, allow_nan=False)
    assert json.loads(save_json(payload, tmp_path).read_text()).keys() == payload.keys()
    for row in payload["rows"].values():
        assert {"recall@10", "ndcg@10", "mrr@10", "coverage", "us_per_event", "ci95", "sampled"} <= row.keys()
        assert row["sampled"]["inflated"] is True
    assert {"cold", "cold_in_catalogue", "tail", "head", "clients"} <= payload["slices"].keys()
    assert all(rows.keys() == payload["rows"].keys() for rows in payload["slices"].values())
    assert payload["rows"][PRIVATE]["run"]["privacy"]["epsilon"] <= 8.0
    assert payload["rows"][FEDERATED]["run"]["privacy"]["unit"] == "off"
    assert payload["protocol"]["records_expected"] == pytest.approx(
        2 * payload["protocol"]["training_users"] * (2 / 3) * 0.5
    )


def test_a_row_is_what_its_stored_vectors_give(evaluation: Evaluation, store: Path) -> None:
    registry = Registry.open(store / FEDERATED)
    vectors = registry.arrays("v000002", ITEM_VECTORS)["item_vectors"]
    ranking = rank(evaluation.events, by_text(evaluation.events, vectors))
    row = evaluation.rows[FEDERATED]
    assert row.quality == quality_of(ranking.full, evaluation.events.user)
    manifest = registry.manifest("v000002")
    assert manifest.metrics["global"]["recall@10"] == row.quality.recall
    told = manifest.details["slices"]
    assert told["cold"]["global"] == slices_of(evaluation.events, ranking)["cold"]
    assert told["clients"]["global"] == row.slices["clients"]
    assert set(told["cold"]) == {"random", "popularity", "zero_shot", "global"}


def test_hidden_items_reach_no_node(evaluation: Evaluation, store: Path) -> None:
    parts = Parts.of(data(), 0.2, 0)
    assert parts.hidden
    for name in evaluation.trained:
        for path in (store / name).glob("clients/*/interactions.jsonl"):
            items = {json.loads(line)["item_id"] for line in path.read_text().splitlines()}
            assert items
            assert not items & parts.hidden
    histories = {row for history in evaluation.events.history for row in history if row >= 0}
    assert histories & parts.hidden_rows(data().catalogue)  # yet users remember them


def test_the_curves_begin_at_zero_shot_and_end_at_the_row(evaluation: Evaluation) -> None:
    zero = evaluation.rows["zero_shot"].quality.recall
    for row in evaluation.trained.values():
        assert [point.round for point in row.points] == [0, 1, 2]
        assert row.points[0].quality["recall@10"] == zero
        assert row.points[-1].quality["recall@10"] == row.quality.recall
    epsilons = evaluation.rows[PRIVATE].epsilons
    assert 0.0 < epsilons[0] <= epsilons[1] <= 8.0
    trained = evaluation.rows[PRIVATE].trained
    assert trained is not None
    assert trained.manifest.privacy is not None
    assert epsilons[-1] == trained.manifest.privacy.epsilon
    assert evaluation.rows[FEDERATED].epsilons == ()


def test_the_report_holds_every_figure(evaluation: Evaluation) -> None:
    report = compose(evaluation)
    page, text = to_html(report), to_markdown(report)
    for row in evaluation.rows.values():
        assert f"{row.quality.recall:.4f}" in page
        assert f"{row.quality.ci95[0]:.4f} to {row.quality.ci95[1]:.4f}" in text
    assert page.count("<svg") == 3
    for words in ("INFLATED", "Quality against epsilon", "Quality against round", "Epsilon against round", "commit"):
        assert words in page


def test_other_settings_are_refused(evaluation: Evaluation, tiny_bert: Path, store: Path) -> None:
    assert evaluation.rows
    settings = settings_for(tiny_bert)
    for changes in ({"cohort": 3}, {"hide_cold": 0.3}):
        other = replace(settings, base=replace(settings.base, **changes))
        with pytest.raises(StoreMismatch, match="holds a run with"):
            FederatedEvaluation(data(), store, other).run()


# -- what it says, on hits that are made up --------------------------------------------------------------------------


def made_up(recalls: dict[str, float], trained: tuple[str, ...], like: Evaluation) -> Evaluation:
    """Return an evaluation of 200 users with one event each, of which the first share are hits."""
    users = 200
    clicks = [(f"u{user}", user % 3) for user in range(users)]
    events = build_test(clicks, [(user, row + 3) for user, row in clicks], 6)
    some = next(iter(like.trained.values()))

    def row(name: str, recall: float) -> Row:
        ranks = build_ranks(users, recall)
        ranking = Ranking(ranks, ranks, ranks, events.popularity > 0, 0.0)
        quality = quality_of(ranks, events.user)
        kept = {"trained": some.trained, "points": some.points} if name in trained else {}
        return Row(quality, quality, ranking, {}, **kept)  # type: ignore[arg-type]  # by name

    return replace(like, events=events, rows={name: row(name, recall) for name, recall in recalls.items()})


def build_ranks(users: int, recall: float) -> np.ndarray:
    return np.where(np.arange(users) < recall * users, 1, 50)


def test_what_is_worse_than_a_control_is_said_first_and_in_words(evaluation: Evaluation) -> None:
    recalls = {"random": 0.01, "popularity": 0.3, "zero_shot": 0.1, FEDERATED: 0.1, CENTRALISED: 0.5}
    sentences, bad = findings(made_up(recalls, (FEDERATED, CENTRALISED), evaluation))
    assert bad == {0}
    assert sentences[0].startswith("federated, no privacy: WORSE than the control popularity (-0.2000")
    assert "not told apart from zero-shot text" in sentences[0]
    assert sentences[0].endswith("better than random.")
    assert sentences[1] == "centralised LoRA: better than random, popularity, zero-shot text."


# -- settings --------------------------------------------------------------------------------------------------------


def test_the_centralised_row_sees_as_many_records(tiny_bert: Path) -> None:
    runs = settings_for(tiny_bert).runs()
    dealt = Parts.of(data(), 0.2, 0).deal(3, 0)
    users = len(owners(dealt))
    federated, central = runs[FEDERATED], runs[CENTRALISED]
    seen = federated.rounds * federated.privacy.sample_rate * users * federated.cohort / federated.clients
    assert central.rounds * central.privacy.sample_rate * users == pytest.approx(seen)
    assert central.clients == 1
    assert {run.privacy.unit for run in (federated, central)} == {"off"}


@pytest.mark.parametrize(("strategy", "alone"), [("fedit", "fedit"), ("fedsvd", "fedsvd"), ("median", "fedsvd")])
def test_one_node_alone_needs_no_robust_rule(tiny_bert: Path, strategy: str, alone: str) -> None:
    settings = settings_for(tiny_bert)
    runs = replace(settings, base=replace(settings.base, strategy=strategy)).runs()
    assert (runs[FEDERATED].strategy, runs[CENTRALISED].strategy) == (strategy, alone)


def test_rows_are_named_by_their_guarantee(tiny_bert: Path) -> None:
    assert row_name("user", "local", 8.0) == PRIVATE
    assert row_name("example", "shared", 0.5) == "example_shared_epsilon_0.5"
    named = EvaluationSettings.named(
        settings_for(tiny_bert).base, units=["user", "example"], noises=["local"], epsilons=[1.0, 3.0]
    )
    assert list(named.runs())[2:] == ["user_epsilon_1", "user_epsilon_3", "example_epsilon_1", "example_epsilon_3"]


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"epsilons": (8.0, 8.0)}, "each only once"),
        ({"units": ("off",)}, "unit off"),
        ({"epsilons": (-1.0,)}, "epsilon > 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(tiny_bert: Path, changes: dict[str, object], refused: str) -> None:
    with pytest.raises(InvalidSetting, match=refused):
        replace(settings_for(tiny_bert), **changes).runs()  # type: ignore[arg-type]  # by name


def test_unknown_names_are_refused(tiny_bert: Path) -> None:
    base = settings_for(tiny_bert).base
    with pytest.raises(UnknownName, match="everybody"):
        EvaluationSettings.named(base, units=["everybody"], noises=["local"], epsilons=[1.0])
    with pytest.raises(UnknownName, match="nobody"):
        EvaluationSettings.named(base, units=["user"], noises=["nobody"], epsilons=[1.0])


def test_a_guarantee_that_cannot_be_kept_is_refused_before_anything_is_trained(tiny_bert: Path, tmp_path: Path) -> None:
    base = settings_for(tiny_bert).base
    twice = replace(base, objective=replace(base.objective, local_steps=2))
    with pytest.raises(InvalidSetting, match="local steps"):
        FederatedEvaluation(data(), tmp_path, EvaluationSettings(twice, noises=("server",))).run()
    assert not list(tmp_path.iterdir())


def test_in_little_is_little(tiny_bert: Path) -> None:
    base = replace(settings_for(tiny_bert).base, clients=50, cohort=20, rounds=30)
    small = quick(EvaluationSettings(base, epsilons=(1.0, 3.0, 8.0)))
    assert (small.base.clients, small.base.cohort, small.base.rounds) == (4, 4, 2)
    assert small.epsilons == (1.0, 8.0)


def test_the_command_refuses_epsilons_that_are_no_numbers(tmp_path: Path) -> None:
    done = CliRunner().invoke(command(), ["evaluate", "federated", "--epsilons", "1,two", "--store", str(tmp_path)])
    assert isinstance(done.exception, InvalidSetting)
    assert "epsilons '1,two'" in str(done.exception)
    assert not list(tmp_path.iterdir())
