"""An evaluation in words, tables and plots. What is worse than its control is said so, first."""

from collections.abc import Mapping, Sequence
from typing import Any

from anabranch.evaluation import Evaluation, Row
from anabranch.evaluation_settings import CENTRALISED, FEDERATED, row_name
from anabranch.report import Block, Bullets, Line, Plot, Report, Section, Table, Text, protocol_table
from server.evaluate import NEGATIVES
from server.slices import QUANTILES

NAMES = {
    "random": "random",
    "popularity": "popularity",
    "item_knn": "item-kNN",
    "item_knn_recent": "recency-aware item-kNN",
    "zero_shot": "zero-shot text",
    CENTRALISED: "centralised LoRA",
    FEDERATED: "federated, no privacy",
}
SLICES = {
    "cold": "Cold items (no training click), ranked among the cold items alone",
    "cold_in_catalogue": "Cold items, ranked in the whole catalogue",
    "tail": "Tail items",
    "head": "Head items",
}
RATIOS = ("zero_shot", "popularity", "item_knn", CENTRALISED, FEDERATED)


def label(name: str) -> str:
    """Return a row's name for people."""
    return NAMES.get(name, name.replace("_epsilon_", ", epsilon ").replace("_", ", noise "))


def findings(evaluation: Evaluation) -> tuple[list[str], frozenset[int]]:
    """Return one sentence a trained row on what it beats and what beats it, and which of them are bad news.

    Bad news: worse than a control, by a paired 95% interval that lies below zero.
    """
    sentences: list[str] = []
    bad: set[int] = set()
    for name in evaluation.trained:
        found = {other: evaluation.against(name, other) for other in evaluation.controls}
        worse = [f"{label(other)} ({each})" for other, each in found.items() if each.is_worse]
        better = [label(other) for other, each in found.items() if each.is_better]
        equal = [label(other) for other, each in found.items() if not each.is_worse and not each.is_better]
        said = []
        if worse:
            bad.add(len(sentences))
            said.append(f"WORSE than the control {' and '.join(worse)}")
        if equal:
            said.append(f"not told apart from {', '.join(equal)}")
        if better:
            said.append(f"better than {', '.join(better)}")
        sentences.append(f"{label(name)}: {'; '.join(said)}.")
    return sentences, frozenset(bad)


def compose(evaluation: Evaluation) -> Report:
    """Return the report of an evaluation."""
    sentences, bad = findings(evaluation)
    return Report(
        f"Federated evaluation on {evaluation.protocol['data']}",
        (
            Section("Findings", (Bullets(sentences, bad), *_held_back(evaluation))),
            Section("Quality", (_quality(evaluation.rows), _differences(evaluation), _sampled(evaluation.rows))),
            Section("Privacy", _privacy(evaluation)),
            Section("Over the rounds", _rounds(evaluation)),
            Section("Slices", (*_slices(evaluation.rows), _clients(evaluation.rows))),
            Section("Protocol", (protocol_table(evaluation.protocol),)),
        ),
    )


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "-" if value is None else str(value)


def _metrics(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = metrics["ci95"] or (None, None)
    interval = "-" if low is None else f"{low:.4f} to {high:.4f}"
    return (_number(metrics["recall@10"]), interval, _number(metrics["ndcg@10"]), _number(metrics["mrr@10"]))


COLUMNS = ("recall@10", "95% interval", "NDCG@10", "MRR@10")


def _quality(rows: Mapping[str, Row]) -> Table:
    body = [
        (label(name), *_metrics(row.quality.as_json()), _number(row.ranking.coverage), f"{_microseconds(row):.0f}")
        for name, row in rows.items()
    ]
    return Table("Full rank over all unseen items", ("", *COLUMNS, "coverage", "µs an event"), body)


def _microseconds(row: Row) -> float:
    return 1e6 * row.ranking.seconds / len(row.ranking.full)


def _sampled(rows: Mapping[str, Row]) -> Table:
    body = [(label(name), *_metrics(row.sampled.as_json())) for name, row in rows.items()]
    return Table(
        f"INFLATED: among {NEGATIVES} sampled items only, for comparison with published figures that do so",
        ("", *COLUMNS),
        body,
    )


def _differences(evaluation: Evaluation) -> Table:
    """Return how many times the recall of each trained row is that of others, and the paired difference to each."""
    body = []
    for name, row in evaluation.trained.items():
        cells = []
        for other in RATIOS:
            rival = evaluation.rows.get(other)
            if rival is None or other == name or not rival.quality.recall:
                cells.append("-")
            else:
                low, high = evaluation.against(name, other).ci95
                cells.append(f"{row.quality.recall / rival.quality.recall:.2f} ({low:+.4f} to {high:+.4f})")
        body.append((label(name), *cells))
    return Table(
        "Recall as a multiple of another row's (in brackets the paired 95% interval of the difference)",
        ("", *(label(other) for other in RATIOS)),
        body,
    )


def _held_back(evaluation: Evaluation) -> list[Block]:
    """Return what the gate and the budgets did, in words, where they did anything."""
    said = []
    for name, row in evaluation.trained.items():
        assert row.trained is not None  # noqa: S101  by the definition of `trained`
        details = row.trained.manifest.details
        if not details.get("promoted", True):
            said.append(f"{label(name)}: the last version is held back: {details['reason']}")
        if row.trained.stopped:
            said.append(f"{label(name)}: stopped early after round {row.trained.state.round}: {row.trained.stopped}")
    return [Bullets(said)] if said else []


# -- privacy and rounds ----------------------------------------------------------------------------------------------


def _privacy(evaluation: Evaluation) -> list[Block]:
    settings, rows = evaluation.settings, evaluation.rows
    lines, body = [], []
    for unit in settings.units:
        for noise in settings.noises:
            names = [row_name(unit, noise, epsilon) for epsilon in sorted(settings.epsilons)]
            spent = {name: rows[name].epsilons[-1] for name in names if rows[name].epsilons}
            body += [
                (
                    label(name),
                    unit,
                    noise,
                    _number(epsilon),
                    f"{evaluation.protocol['delta']:g}",
                    _ratio(rows[name], rows[FEDERATED]),
                )
                for name, epsilon in spent.items()
            ]
            lines.append(_line(f"unit {unit}, noise {noise}", list(spent.values()), [rows[name] for name in spent]))
    if not body:
        return [Text("No row was trained under differential privacy.")]
    levels = {label(each): rows[each].quality.recall for each in (CENTRALISED, FEDERATED, "popularity", "zero_shot")}
    plot = Plot("Quality against epsilon", "epsilon spent", "recall@10", lines, levels, log_x=True)
    header = ("", "unit", "noise", "epsilon spent", "delta", "recall, as a share of that without privacy")
    return [Table("The guarantee of each row, composed over all rounds", header, body), plot]


def _ratio(row: Row, other: Row) -> str:
    return f"{row.quality.recall / other.quality.recall:.2f}" if other.quality.recall else "-"


def _line(name: str, x: Sequence[float], rows: Sequence[Row]) -> Line:
    return Line(
        name,
        tuple(x),
        tuple(row.quality.recall for row in rows),
        tuple(row.quality.ci95[0] for row in rows),
        tuple(row.quality.ci95[1] for row in rows),
    )


def _rounds(evaluation: Evaluation) -> list[Block]:
    quality = [
        Line(
            label(name),
            tuple(point.round for point in row.points),
            tuple(point.quality["recall@10"] for point in row.points),
            tuple(point.quality["ci95"][0] for point in row.points),
            tuple(point.quality["ci95"][1] for point in row.points),
        )
        for name, row in evaluation.trained.items()
    ]
    levels = {label("popularity"): evaluation.rows["popularity"].quality.recall}
    blocks: list[Block] = [Plot("Quality against round", "round", "recall@10", quality, levels)]
    spent = [
        Line(label(name), tuple(range(len(row.epsilons) + 1)), (0.0, *row.epsilons))
        for name, row in evaluation.trained.items()
        if row.epsilons
    ]
    return [*blocks, Plot("Epsilon against round", "round", "epsilon spent", spent)] if spent else blocks


# -- slices and protocol ---------------------------------------------------------------------------------------------


def _slices(rows: Mapping[str, Row]) -> list[Block]:
    return [
        Table(
            f"{caption} ({next(iter(rows.values())).slices[name]['events']} events)",
            ("", *COLUMNS),
            [(label(row), *_metrics(each.slices[name])) for row, each in rows.items()],
        )
        for name, caption in SLICES.items()
    ]


def _clients(rows: Mapping[str, Row]) -> Table:
    keys = ("worst_10%", *(f"p{each}" for each in QUANTILES))
    body = [(label(name), *(_number(row.slices["clients"][key]) for key in keys)) for name, row in rows.items()]
    count = next(iter(rows.values())).slices["clients"]["clients"]
    return Table(
        f"Recall@10 over {count} clients, each weighing the same; with few events a client's own figure is mostly luck",
        ("", "mean of the worst 10%", *(f"{each}th percentile" for each in QUANTILES)),
        body,
    )
