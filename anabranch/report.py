"""A report as data, and its two forms: Markdown, and one HTML file that needs nothing else.

Plots are drawn by matplotlib straight to SVG, without a screen and without its global state, and stand inside the HTML.
In Markdown a plot is the table of its numbers.
"""

import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from common.store import write_atomic

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1c2430}"
    "h1,h2{line-height:1.2}h2{margin-top:2.2rem;border-bottom:1px solid #d5dbe3}"
    "table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums;display:block;overflow-x:auto}"
    "caption{text-align:left;padding:.3rem 0;color:#55606e}"
    "th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #e4e8ee;white-space:nowrap}"
    "th:first-child,td:first-child{text-align:left}figure{margin:1rem 0}svg{max-width:100%;height:auto}"
    "li.bad{color:#9b1c1c;font-weight:600}"
)


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list; the items whose number is in `bad` are what a reader must not overlook."""

    items: Sequence[str]
    bad: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose first column names the row."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Line:
    """Points of one line of a plot, with the ends of their intervals where they have one."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines over one axis.

    Parameters
    ----------
    title, x_label, y_label
        What it shows.
    lines
        At least one.
    levels
        Horizontal lines: label to height.
    log_x
        A logarithmic axis, with a tick at every point.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    levels: Mapping[str, float] = field(default_factory=dict)
    log_x: bool = False


Block = Text | Bullets | Table | Plot


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Report:
    """A whole report."""

    title: str
    sections: Sequence[Section]


def write_report(report: Report, folder: Path, name: str) -> tuple[Path, Path]:
    """Write both forms and return their paths, Markdown first."""
    markdown, page = folder / f"{name}.md", folder / f"{name}.html"
    write_atomic(markdown, to_markdown(report).encode())
    write_atomic(page, to_html(report).encode())
    return markdown, page


def protocol_table(protocol: Mapping[str, object], leave_out: Sequence[str] = ()) -> Table:
    """Return how figures came about as a table, names in words; nested mappings in one cell."""
    body = [(name.replace("_", " "), _in_words(value)) for name, value in protocol.items() if name not in leave_out]
    return Table("How these figures came about", ("", ""), body)


def _in_words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {_in_words(each)}" for key, each in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


# -- Markdown --------------------------------------------------------------------------------------------------------


def to_markdown(report: Report) -> str:
    """Return the report as Markdown."""
    parts = [f"# {report.title}"]
    for section in report.sections:
        parts.append(f"## {section.title}")
        parts += [_markdown(block) for block in section.blocks]
    # Markdown lets HTML through; what looks like a tag here is text
    return "\n\n".join(parts).replace("<", "&lt;") + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Text):
        return block.text
    if isinstance(block, Bullets):
        return "\n".join(f"- **{each}**" if n in block.bad else f"- {each}" for n, each in enumerate(block.items))
    table = numbers_of(block) if isinstance(block, Plot) else block
    cells = [tuple(each.replace("|", "\\|") for each in row) for row in (table.header, *table.rows)]
    rule = ["---", *("---:" for _ in table.header[1:])]
    lines = [f"| {' | '.join(row)} |" for row in (cells[0], rule, *cells[1:])]
    return "\n".join([table.caption, "", *lines])


def numbers_of(plot: Plot) -> Table:
    """Return the numbers that a plot draws, one row a line and one column a point on the axis."""
    places = sorted({x for line in plot.lines for x in line.x})
    rows = []
    for line in plot.lines:
        known = dict(zip(line.x, line.y, strict=True))
        rows.append((line.label, *(f"{known[x]:.4f}" if x in known else "" for x in places)))
    rows += [(label, *(f"{height:.4f}" for _ in places)) for label, height in plot.levels.items()]
    return Table(f"{plot.title}: {plot.y_label}", (plot.x_label, *(f"{x:.3g}" for x in places)), rows)


# -- HTML ------------------------------------------------------------------------------------------------------------


def to_html(report: Report) -> str:
    """Return the report as one HTML page that loads nothing."""
    title = html.escape(report.title)
    parts = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>',
        f"<h1>{title}</h1>",
    ]
    for section in report.sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        parts += [_html(block) for block in section.blocks]
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _html(block: Block) -> str:
    if isinstance(block, Text):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Bullets):
        marked = ((' class="bad"' if number in block.bad else "", each) for number, each in enumerate(block.items))
        return "<ul>" + "".join(f"<li{mark}>{html.escape(each)}</li>" for mark, each in marked) + "</ul>"
    if isinstance(block, Plot):
        return f"<figure>{to_svg(block)}</figure>"
    head = "".join(f"<th>{html.escape(each)}</th>" for each in block.header)
    rows = ("".join(f"<td>{html.escape(each)}</td>" for each in row) for row in block.rows)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table><caption>{html.escape(block.caption)}</caption><tr>{head}</tr>{body}</table>"


def to_svg(plot: Plot) -> str:
    """Draw a plot; the same plot gives the same text."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": plot.title, "font.size": 10}):
        figure = Figure(figsize=(8.0, 4.2), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for line in plot.lines:
            if line.low:
                below = [y - low for y, low in zip(line.y, line.low, strict=True)]
                above = [high - y for y, high in zip(line.y, line.high, strict=True)]
                axes.errorbar(
                    line.x, line.y, yerr=[below, above], label=line.label, marker="o", markersize=4, capsize=3
                )
            else:
                axes.plot(line.x, line.y, label=line.label, marker="o", markersize=4)
        for number, (label, height) in enumerate(plot.levels.items()):
            axes.axhline(height, label=label, color=f"C{(len(plot.lines) + number) % 10}", linestyle="--", linewidth=1)
        if plot.log_x:
            axes.set_xscale("log")
            places = sorted({x for line in plot.lines for x in line.x})
            axes.set_xticks(places, [f"{x:.3g}" for x in places])
            axes.minorticks_off()
        axes.set(title=plot.title, xlabel=plot.x_label, ylabel=plot.y_label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", alpha=0.3)
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    text = drawn.getvalue()
    # ids are unique within a plot only, and a page holds several
    prefix = re.sub(r"\W+", "-", plot.title.lower())
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", text[text.index("<svg") :])
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(plot.title)}" ', 1)
