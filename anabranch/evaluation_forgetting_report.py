"""The forgetting of the stream's learners in words, tables and plots. What is worse than a control comes first."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from anabranch.evaluation_forgetting import (
    FACTORS,
    FINE_TUNED,
    FROZEN,
    OURS,
    RECALLING,
    REFITTED,
    REPLAY,
    WITH_TEXTS,
)
from anabranch.report import Bullets, Line, Plot, Report, Section, Table, Text, protocol_table

NAMES = {
    OURS: "ours (blend)",
    FACTORS: "MF alone",
    WITH_TEXTS: "MF with texts: rows start at their texts",
    RECALLING: f"MF with replay: {REPLAY} likes a user",
    FROZEN: "frozen: ours, first window only",
    FINE_TUNED: "fine-tune only: river BiasedMF, user rows",
    REFITTED: "refit: EASE at the end of each window",
}
MEASURES = {
    "average": "recall at the end",
    "plasticity": "on what was just taught",
    "backward": "backward transfer",
    "forward": "forward transfer",
}


def label(name: str) -> str:
    """Return a row's name for people."""
    return NAMES.get(name, name)


def findings(payload: Mapping[str, Any]) -> tuple[list[str], frozenset[int]]:
    """Return what ours does better and worse than each other row, and which sentences are bad news.

    Parameters
    ----------
    payload
        `ForgettingEvaluation.as_json`.
    """
    sentences: list[str] = []
    bad: set[int] = set()
    for kind in ("average", "backward", "forward"):
        worse = [name for name, each in payload["against"].items() if each[kind]["ci95"][1] < 0]
        better = [name for name, each in payload["against"].items() if each[kind]["ci95"][0] > 0]
        if worse:
            bad.add(len(sentences))
            sentences.append(f"{MEASURES[kind].capitalize()} WORSE than that of {_listed(worse)}.")
        if better:
            sentences.append(f"{MEASURES[kind].capitalize()} better than that of {_listed(better)}.")
    low, high = payload["rows"][OURS]["backward"]["ci95"]
    told = "forgets old windows" if high < 0 else "gains on old windows" if low > 0 else "forgets nothing that shows"
    if high < 0:
        bad.add(len(sentences))
    sentences.append(f"Ours {told}: backward transfer {signed(payload['rows'][OURS]['backward'])}.")
    return sentences, frozenset(bad)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(label(name).partition(":")[0] for name in names)


def compose(payload: Mapping[str, Any]) -> Report:
    """Return the report of an evaluation, from what `ForgettingEvaluation.as_json` gives."""
    sentences, bad = findings(payload)
    protocol, rows = payload["protocol"], payload["rows"]
    sections = [
        Section("Findings", (Bullets(sentences, bad),)),
        Section("Measures", (_measures(rows), *(_against(payload["against"]) if payload["against"] else ()))),
        Section("Windows", tuple(matrix_table(name, row, protocol["k"]) for name, row in rows.items())),
        Section("Old windows while new ones are taught", (_first(rows, protocol["k"]), Text(_HOW))),
        Section("Protocol", (_windows(protocol["windows"]), protocol_table(protocol, leave_out=("windows",)))),
    ]
    return Report(f"Forgetting on {protocol['data']}", tuple(sections))


_HOW = (
    "A row of a matrix is a state of the learner, a column is what it is asked. Read down a column: below the diagonal "
    "a fall is forgetting; above it stands what was known of a window before it was taught."
)


def signed(measure: Mapping[str, Any]) -> str:
    """Return a difference with its interval, signs shown."""
    low, high = measure["ci95"]
    return f"{measure['value']:+.4f} ({low:+.4f} to {high:+.4f})"


def _measures(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    body = []
    for name, row in rows.items():
        low, high = row["average"]["ci95"]
        average = f"{row['average']['value']:.4f} ({low:.4f} to {high:.4f})"
        plasticity = f"{row['plasticity']['value']:.4f}"
        body.append(
            (
                label(name),
                average,
                plasticity,
                signed(row["backward"]),
                signed(row["forward"]),
                f"{row['forgetting']:.4f}",
                f"{row['us_per_event']:.0f}",
            )
        )
    header = ("", *MEASURES.values(), "fall from the best", "µs an event")
    return Table("Means over the windows, 95% intervals over users", header, body)


def _against(against: Mapping[str, Mapping[str, Any]]) -> tuple[Table]:
    body = [(label(name), *(signed(each[kind]) for kind in MEASURES)) for name, each in against.items()]
    return (Table("Ours less the other, paired", ("ours against", *MEASURES.values()), body),)


def matrix_table(name: str, row: Mapping[str, Any], k: int) -> Table:
    """Return one row's matrix: states down, windows across."""
    states = [("nothing", row["untrained"]), *((f"1 to {n}" if n > 1 else "1", r) for n, r in _numbered(row["matrix"]))]
    body = [(taught, *(f"{value:.4f}" for value in values)) for taught, values in states]
    header = ("taught windows", *(f"asked {n}" for n, _ in _numbered(row["untrained"])))
    return Table(f"{label(name)}: recall@{k}", header, body)


def _numbered(values: Sequence[Any]) -> list[tuple[int, Any]]:
    return list(enumerate(values, start=1))


def _first(rows: Mapping[str, Mapping[str, Any]], k: int) -> Plot:
    lines = []
    for name, row in rows.items():
        column = [values[0] for values in row["matrix"]]
        lines.append(Line(label(name), tuple(float(n) for n, _ in _numbered(column)), tuple(column)))
    return Plot(f"Recall@{k} on the first window", "windows taught", f"recall@{k}", lines)


def _windows(windows: Sequence[Mapping[str, int]]) -> Table:
    body = [
        (str(n), _day(each["from_ms"]), _day(each["to_ms"]), str(each["taught"]), str(each["tested"]))
        for n, each in _numbered(windows)
    ]
    return Table("Windows of equally many likes", ("window", "from", "to", "taught", "asked"), body)


def _day(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M")
