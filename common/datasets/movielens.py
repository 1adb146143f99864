"""MovieLens (Harper and Konstan, 2015, doi 10.1145/2827872): 100K, and latest-small.

100K comes in two layouts: the atomic files of the recbole wheel, and GroupLens' own `u.data` and `u.item`. The ratings
are the same bytes but for a header, so both are pinned.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from common.datasets.base import Dataset, in_time_order
from common.datasets.obtain import check_sha256, file_from_web, files_from_path, files_from_wheel, members_of_zip
from common.datasets.source import Files, Obtained, Source
from common.errors import DataError, DatasetUnavailable
from common.events import Interaction
from common.items import Catalogue, Item
from common.progress import Progress

LICENCE = "GroupLens: research use, with acknowledgement; no redistribution without permission"
LICENCE_SMALL = "GroupLens: non-commercial use, with acknowledgement; redistribution under the same terms"
CITATION = (
    "F. M. Harper and J. A. Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015, "
    "https://doi.org/10.1145/2827872"
)
ML100K = "movielens-100k"
SMALL = "movielens-latest-small"

WHEEL = "recbole==1.2.1"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
WHEEL_FOLDER = "recbole/dataset_example/ml-100k/"
ATOMIC = ("ml-100k.inter", "ml-100k.item", "ml-100k.user")
GROUPLENS = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
GROUPLENS_FILES = ("u.data", "u.item")
GROUPLENS_SMALL = "https://files.grouplens.org/datasets/movielens/ml-latest-small.zip"
SMALL_FILES = ("movies.csv", "ratings.csv")
PINS = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
    # the bytes of ml-100k.inter after its header
    "u.data": "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
}
ML100K_ITEMS = 1682

GENRES = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical "
    "Mystery Romance Sci-Fi Thriller War Western"
).split()
_NO_GENRE = frozenset({"", "unknown", "(no genres listed)"})
_NO_TITLE = frozenset({"", "unknown", "unkonwn"})  # the second as the wheel spells it

_ARTICLE = re.compile(r"(.+), (The|An?|Il|L[aeo]s?|L'|Das|Der|Die|El|Un[ae]?|De[nt]?|En)")
_WITH_OTHERS = re.compile(r"([^()]+?)((?: \([^()]*\))*)")
_WITH_YEAR = re.compile(r"(.*?)\s*\((\d{4})(?:[-–]\d{0,4})?\)(?:\s*\([IV]+\))?\s*")


def _article_first(title: str) -> str:
    found = _ARTICLE.fullmatch(title)
    if not found:
        return title
    rest, article = found.groups()
    return f"{article}{'' if article.endswith(chr(39)) else ' '}{rest}"


def display_title(title: str) -> str:
    """Return a title with its articles in front: "Postino, Il" is "Il Postino"; so too inside brackets."""
    whole = " ".join(title.split())
    found = _WITH_OTHERS.fullmatch(whole)
    if not found:
        return _article_first(whole)
    main, others = found.groups()
    return _article_first(main) + re.sub(r"\(([^()]*)\)", lambda other: f"({_article_first(other[1])})", others)


def movie(item_id: str, title: str, year: str, genres: Iterable[str]) -> Item:
    """Return a film as an item; its text is "title (year). genre, genre".

    Parameters
    ----------
    item_id
        Its id.
    title
        With or without "(year)" at its end, which `year` then need not repeat.
    year
        Four digits; anything else counts as unknown.
    genres
        Unknown ones are left out.
    """
    known = tuple(genre for genre in genres if genre not in _NO_GENRE)
    if inside := _WITH_YEAR.fullmatch(title):
        title, year = inside.groups()
    if title.strip() in _NO_TITLE:
        return Item(item_id, title=f"film {item_id}", text=", ".join(known), categories=known)
    dated = bool(re.fullmatch(r"\d{4}", year)) and year >= "1000"
    shown = f"{display_title(title)} ({year})" if dated else display_title(title)
    return Item(
        item_id,
        title=shown,
        text=". ".join(part for part in (shown, ", ".join(known)) if part),
        categories=known,
        published_at=int(datetime(int(year), 1, 1, tzinfo=UTC).timestamp()) * 1000 if dated else None,
    )


def _rows(raw: bytes, name: str, columns: int, *, delimiter: str, encoding: str, header: bool) -> Iterator[list[str]]:
    try:
        text = io.StringIO(raw.decode(encoding), newline="")
        # only the comma-separated files quote; elsewhere a quotation mark is part of the title
        reader = (
            csv.reader(text, strict=True)
            if delimiter == ","
            else csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        )
        for number, row in enumerate(reader):
            if number == 0 and header:
                continue
            if len(row) != columns:
                raise DataError(f"row {number + 1} of {name} has {len(row)} columns", expected=str(columns))
            yield row
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{name} is malformed: {error}") from error


def _ratings(rows: Iterable[Sequence[str]], prefix: str, known: Catalogue, name: str) -> list[Interaction]:
    events: list[Interaction] = []
    users: dict[str, str] = {}
    for number, (user, item, stars, seconds) in enumerate(rows, start=1):
        position = known.index(item)
        if position is None:
            raise DataError(f"rating {number} of {name} is of film {item!r}", expected="a film that has a title")
        try:
            value, ts = float(stars), int(float(seconds) * 1000)
        except (ValueError, OverflowError) as error:
            raise DataError(f"rating {number} of {name} is malformed: {error}") from error
        # one string for a user and one for an item: a hundred thousand copies would be most of the memory
        one_user, one_item = users.setdefault(user, user), known[position].item_id
        events.append(Interaction(f"{prefix}-{number}", one_user, one_item, "rating", ts, value))
    return events


def read_atomic(files: Files) -> Dataset:
    """Read 100K in the layout of the recbole wheel: tab-separated, typed headers."""
    films = _rows(files["ml-100k.item"], "ml-100k.item", 4, delimiter="\t", encoding="utf-8", header=True)
    catalogue = Catalogue(movie(item_id, title, year, genres.split(" ")) for item_id, title, year, genres in films)
    rows = _rows(files["ml-100k.inter"], "ml-100k.inter", 4, delimiter="\t", encoding="utf-8", header=True)
    events = _ratings(rows, "ml100k", catalogue, "ml-100k.inter")
    return Dataset(ML100K, catalogue, in_time_order(events), LICENCE)


def read_grouplens(files: Files) -> Dataset:
    """Read 100K in GroupLens' own layout: `u.item` has bars, Latin-1 and a flag for each of 19 genres."""
    films = _rows(files["u.item"], "u.item", 5 + len(GENRES), delimiter="|", encoding="latin-1", header=False)
    catalogue = Catalogue(
        movie(row[0], row[1], "", (genre for genre, flag in zip(GENRES, row[5:], strict=True) if flag == "1"))
        for row in films
    )
    if len(catalogue) != ML100K_ITEMS:
        raise DataError(f"u.item has {len(catalogue)} films", expected=str(ML100K_ITEMS))
    rows = _rows(files["u.data"], "u.data", 4, delimiter="\t", encoding="utf-8", header=False)
    return Dataset(ML100K, catalogue, in_time_order(_ratings(rows, "ml100k", catalogue, "u.data")), LICENCE)


def read_small(files: Files) -> Dataset:
    """Read latest-small: `movies.csv` and `ratings.csv`."""
    films = _rows(files["movies.csv"], "movies.csv", 3, delimiter=",", encoding="utf-8", header=True)
    catalogue = Catalogue(movie(item_id, title, "", genres.split("|")) for item_id, title, genres in films)
    rows = _rows(files["ratings.csv"], "ratings.csv", 4, delimiter=",", encoding="utf-8", header=True)
    events = _ratings(rows, "mlsmall", catalogue, "ratings.csv")
    return Dataset(SMALL, catalogue, in_time_order(events), LICENCE_SMALL)


def _read_100k(files: Files) -> Dataset:
    return read_grouplens(files) if "u.data" in files else read_atomic(files)


def _download_100k(progress: Progress) -> Obtained:
    try:
        progress(f"fetch {ML100K}", 0, 0)
        files = files_from_wheel(WHEEL, WHEEL_SHA256, [WHEEL_FOLDER + name for name in ATOMIC])
        check_sha256(files, PINS, WHEEL)
        return Obtained(files, f"the wheel {WHEEL}")
    except DatasetUnavailable as error:
        from_pip = error
    try:
        raw = file_from_web(GROUPLENS, f"fetch {ML100K}", progress)
        files = members_of_zip(raw, [f"ml-100k/{name}" for name in GROUPLENS_FILES], GROUPLENS)
        check_sha256(files, PINS, GROUPLENS)
        return Obtained(files, GROUPLENS)
    except DatasetUnavailable as error:
        raise DatasetUnavailable(
            f"{ML100K} could not be obtained: (1) {from_pip}; (2) {error}",
            consequence="nothing was kept",
            mend=f"let pip reach an index that has {WHEEL}, or give a copy with `anabranch data fetch {ML100K} "
            "--from FOLDER`, or use --data synthetic, which needs no network",
        ) from error


def _adopt_100k(path: Path) -> Obtained:
    files = files_from_path(path, (ATOMIC, ATOMIC[:2], GROUPLENS_FILES))
    check_sha256(files, PINS, str(path))
    return Obtained(files, f"{path.name} on this machine")


def _download_small(progress: Progress) -> Obtained:
    try:
        raw = file_from_web(GROUPLENS_SMALL, f"fetch {SMALL}", progress)
        files = members_of_zip(raw, [f"ml-latest-small/{name}" for name in SMALL_FILES], GROUPLENS_SMALL)
        return Obtained(files, GROUPLENS_SMALL)
    except DatasetUnavailable as error:
        raise DatasetUnavailable(
            f"{SMALL} could not be obtained: {error}",
            consequence="nothing was kept",
            mend=f"give a copy with `anabranch data fetch {SMALL} --from FOLDER`, or use --data synthetic",
        ) from error


def _adopt_small(path: Path) -> Obtained:
    return Obtained(files_from_path(path, (SMALL_FILES,)), f"{path.name} on this machine")


def _notice(name: str, licence: str) -> str:
    return f"{name} is by GroupLens Research, University of Minnesota. Licence: {licence}. Cite: {CITATION}"


MOVIELENS_100K = Source(
    name=ML100K,
    licence=LICENCE,
    notice=_notice(ML100K, LICENCE),
    origin=f"the wheel {WHEEL} through pip, else {GROUPLENS}",
    download=_download_100k,
    adopt=_adopt_100k,
    read=_read_100k,
)
MOVIELENS_SMALL = Source(
    name=SMALL,
    licence=LICENCE_SMALL,
    notice=_notice(SMALL, LICENCE_SMALL),
    origin=GROUPLENS_SMALL,
    download=_download_small,
    adopt=_adopt_small,
    read=read_small,
)
