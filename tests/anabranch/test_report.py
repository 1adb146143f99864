"""Reports: what goes in comes out in both forms, nothing is loaded, and hostile text stays text."""

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from anabranch.report import (
    Bullets,
    Line,
    Plot,
    Report,
    Section,
    Table,
    Text,
    numbers_of,
    to_html,
    to_markdown,
    to_svg,
    write_report,
)

PLOT = Plot(
    "quality against epsilon",
    "epsilon",
    "recall@10",
    (Line("user", (1.0, 8.0), (0.02, 0.05), (0.01, 0.04), (0.03, 0.06)), Line("example", (8.0,), (0.04,))),
    {"without privacy": 0.07},
    log_x=True,
)
HOSTILE = '<script>alert("x")</script> & | pipes'
REPORT = Report(
    f"Title {HOSTILE}",
    (
        Section("First", (Text(f"Text {HOSTILE}"), Bullets(("fine", f"worse {HOSTILE}"), frozenset({1})))),
        Section("Second", (Table("A caption", ("", "recall"), (("a|b", "0.1"), ("<b>", "0.2"))), PLOT, PLOT)),
    ),
)


class Page(HTMLParser):
    """Collects tags, what they would load, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for key, value in attrs if key in {"src", "href", "xlink:href", "data"}]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    page = Page()
    page.feed(to_html(REPORT))
    assert not {"script", "link", "img", "iframe", "b"} & set(page.tags)
    assert all(each.startswith("#") for each in page.loads)
    assert "@import" not in to_html(REPORT)
    assert page.tags.count("svg") == 2
    assert page.text.count(HOSTILE) >= 3


def test_every_cell_and_word_is_in_both_forms() -> None:
    page = Page()
    page.feed(to_html(REPORT))
    for word in ("First", "Second", "A caption", "a|b", "0.1", "fine"):
        assert word in page.text
    markdown = to_markdown(REPORT)
    assert "| a\\|b | 0.1 |" in markdown
    assert "- **worse &lt;script>" in markdown
    assert "<script" not in markdown
    assert "- fine" in markdown


def test_a_plot_is_whole_xml_with_its_labels_as_text() -> None:
    root = ElementTree.fromstring(to_svg(PLOT))  # noqa: S314  our own text
    drawn = " ".join(element.text or "" for element in root.iter() if element.tag.endswith("}text"))
    for label in ("quality against epsilon", "recall@10", "user", "example", "without privacy"):
        assert label in drawn
    assert root.attrib["aria-label"] == PLOT.title
    names = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert names
    assert all(name.startswith("quality-against-epsilon-") for name in names)
    targets = set(re.findall(r'(?:url\(|href=")#([^)"]+)', to_svg(PLOT)))
    assert targets
    assert targets <= set(names)


def test_the_same_plot_gives_the_same_text() -> None:
    assert to_svg(PLOT) == to_svg(PLOT)


def test_a_plot_in_markdown_is_its_numbers() -> None:
    table = numbers_of(PLOT)
    assert table.header == ("epsilon", "1", "8")
    assert table.rows == [
        ("user", "0.0200", "0.0500"),
        ("example", "", "0.0400"),
        ("without privacy", "0.0700", "0.0700"),
    ]


def test_a_higher_point_is_drawn_higher() -> None:
    """Known answer: of two points the one with more quality has the smaller SVG y."""
    text = to_svg(Plot("p", "x", "y", (Line("l", (1.0, 2.0), (0.1, 0.9)),)))
    placed = re.findall(r'<use xlink:href="#[^"]+" x="([\d.]+)" y="([\d.]+)" style="fill: #1f77b4', text)
    (x1, y1), (x2, y2) = ((float(x), float(y)) for x, y in placed[:2])
    assert x1 < x2
    assert y1 > y2


@pytest.mark.parametrize("again", [False, True])
def test_files_are_written_whole(tmp_path: Path, again: bool) -> None:
    for _ in range(1 + again):
        markdown, page = write_report(REPORT, tmp_path / "new", "evaluation")
    assert markdown.read_text() == to_markdown(REPORT)
    assert page.read_text() == to_html(REPORT)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"evaluation.md", "evaluation.html"}
