"""The evaluation of the stream in words, tables and plots. What is worse than a control is said so, first."""

from collections.abc import Mapping, Sequence
from typing import Any

from anabranch.evaluation_stream import LIKES_ONLY, OURS, WITHOUT_CONTENT
from anabranch.report import Bullets, Line, Plot, Report, Section, Table, Text, protocol_table

NAMES = {
    "random": "random",
    "popularity": "popularity",
    "popularity_decayed": "decayed popularity",
    "river_mf": "river BiasedMF",
    "river_mf_negatives": "river BiasedMF, sampled negatives",
    "pointwise_mf": "pointwise MF, sampled negatives",
    "item_knn": "item-kNN",
    "personal_top": "what the user bought most",
    "personal_top_earlier": "what the user bought most before this basket",
    OURS: "ours (blend)",
    LIKES_ONLY: "ours, told likes only as the controls are",
    WITHOUT_CONTENT: "ours without content",
    "neighbours": "member: recency-aware item-kNN",
    "factors": "member: factors",
    "content": "member: likeness of texts",
    "zero_shot": "zero-shot text, as the encoder gives it",
}
SLICES = {
    "user_history": "by the user's likes before",
    "item_history": "by the item's likes before",
    "moment": "by whether the user's like before is of the same time",
}
DRAWN = (OURS, "neighbours", "item_knn", "popularity")


def label(name: str) -> str:
    """Return a row's name for people."""
    if name.startswith("ease_"):
        return f"EASE refitted every {int(name.removeprefix('ease_')):,} likes"
    return NAMES.get(name, name)


def findings(payload: Mapping[str, Any]) -> tuple[list[str], frozenset[int]]:
    """Return what ours beats and what beats it, in sentences, and which of them are bad news.

    Parameters
    ----------
    payload
        `StreamEvaluation.as_json`.
    """
    sentences: list[str] = []
    bad: set[int] = set()
    told = [
        ("", "control", payload["controls"], payload["against"]),
        ("", "member", payload["members"], payload["against"]),
    ]
    if payload["against_likes_only"] is not None:
        told.append(("Told likes only: ", "control", payload["controls"], payload["against_likes_only"]))
    for when, kind, names, against in told:
        worse: list[str] = []
        better: list[str] = []
        level: list[str] = []
        for name in names:
            low, high = against[name]["ci95"]
            (worse if high < 0 else better if low > 0 else level).append(label(name).removeprefix("member: "))
        if worse:
            bad.add(len(sentences))
            sentences.append(f"{when}WORSE than the {kind} {' and '.join(worse)}.")
        if level:
            sentences.append(f"{when}Not told apart from the {kind} {', '.join(level)}.")
        if better:
            sentences.append(f"{when}Better than the {kind} {', '.join(better)}.")
    if WITHOUT_CONTENT in payload["against"]:
        found = payload["against"][WITHOUT_CONTENT]
        low, high = found["ci95"]
        if high < 0:
            bad.add(len(sentences))
        sentences.append(f"With content instead of without: {found['difference']:+.4f} ({low:+.4f} to {high:+.4f}).")
    return sentences, frozenset(bad)


def compose(payload: Mapping[str, Any]) -> Report:
    """Return the report of an evaluation, from what `StreamEvaluation.as_json` gives."""
    sentences, bad = findings(payload)
    k = payload["protocol"]["k"]
    sections = [
        Section("Findings", (Bullets(sentences, bad),)),
        Section("Quality and cost", (_quality(payload["rows"], k), _against(payload["against"]))),
        Section("Over the stream", (_curves(payload["curves"], k),)),
        Section("Slices", tuple(_slice(payload["slices"], kind, k) for kind in SLICES)),
    ]
    if payload["cold"] is not None:
        sections.append(Section("Cold items", _cold(payload["cold"], k)))
    sections.append(Section("Protocol", (protocol_table(payload["protocol"]),)))
    return Report(f"Streaming evaluation on {payload['protocol']['data']}", tuple(sections))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _metrics(row: Mapping[str, Any], k: int) -> tuple[str, ...]:
    interval = "-" if row["ci95"] is None else f"{row['ci95'][0]:.4f} to {row['ci95'][1]:.4f}"
    return (_number(row[f"recall@{k}"]), interval, _number(row[f"ndcg@{k}"]), _number(row[f"mrr@{k}"]))


def _columns(k: int) -> tuple[str, ...]:
    return (f"recall@{k}", "95% interval", f"NDCG@{k}", f"MRR@{k}")


def _quality(rows: Mapping[str, Mapping[str, Any]], k: int) -> Table:
    body = [
        (
            label(name),
            *_metrics(row, k),
            f"{row['coverage']:.2f}",
            f"{row['gini']:.2f}",
            f"{row['answer_us']:.0f}",
            f"{row['learn_us']:.0f}",
        )
        for name, row in rows.items()
    ]
    header = ("", *_columns(k), "coverage", "Gini", "µs an answer", "µs a lesson")
    return Table("Each like first predicted, then learned; full rank", header, body)


def _against(found: Mapping[str, Mapping[str, Any]]) -> Table:
    body = []
    for name, each in found.items():
        low, high = each["ci95"]
        test = each["mcnemar"]
        body.append(
            (
                label(name),
                f"{each['difference']:+.4f}",
                f"{low:+.4f} to {high:+.4f}",
                str(test["better"]),
                str(test["worse"]),
                str(test["windows"]),
            )
        )
    header = ("ours against", "difference in recall", "95% interval", "windows better", "windows worse", "windows")
    return Table("Paired difference, and McNemar's test in sliding windows at 1 per cent", header, body)


def _curves(curves: Mapping[str, Sequence[Mapping[str, float]]], k: int) -> Plot:
    lines = [
        Line(label(name), tuple(each["test"] for each in curve), tuple(each["recall"] for each in curve))
        for name, curve in curves.items()
        if name in DRAWN or name.startswith("ease_")
    ]
    return Plot(f"Recall@{k} over the stream", "test", f"recall@{k}", lines)


def _slice(slices: Mapping[str, Any], kind: str, k: int) -> Table:
    ranges = next(iter(slices.values()))[kind]
    header = ("", *(f"{name} ({each['evaluated']})" for name, each in ranges.items()))
    body = [
        (label(name), *(_number(each[f"recall@{k}"]) for each in found[kind].values()))
        for name, found in slices.items()
    ]
    return Table(f"Recall@{k} {SLICES[kind]} (tests in brackets)", header, body)


def _cold(cold: Mapping[str, Any], k: int) -> tuple[Table | Text, ...]:
    body = [(label(name), *_metrics(row, k)) for name, row in cold["rows"].items()]
    caption = f"{cold['items']} items that nobody learns, ranked among themselves ({cold['test_events']} tests)"
    told = "; ".join(
        f"{cold[key]:.2f} times {of}"
        for key, of in (("times_random", "random"), ("times_zero_shot", "zero-shot text"))
        if cold[key] is not None
    )
    return Table(caption, ("", *_columns(k)), body), Text(f"Ours reaches {told}.")
