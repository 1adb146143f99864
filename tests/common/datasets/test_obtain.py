"""The doors to the network, with a real pip, a real server, and neither."""

import hashlib
import io
import os
import random
import threading
import urllib.request
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from common.datasets import obtain
from common.datasets.movielens import ATOMIC, MOVIELENS_100K, WHEEL, WHEEL_FOLDER, WHEEL_SHA256
from common.datasets.obtain import file_from_web, files_from_path, files_from_wheel, members_of_zip
from common.datasets.registry import fetch_dataset, load_dataset
from common.errors import DatasetUnavailable
from common.progress import silent

NOWHERE = "http://127.0.0.1:9"
"""A port where nothing listens: as a proxy it makes every address unreachable."""


def zipped(members: dict[str, bytes]) -> bytes:
    """Return a zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def wheel(folder: Path, members: dict[str, bytes]) -> bytes:
    """Write a wheel by the name of the pinned one that a real pip accepts, and return its bytes."""
    info = "recbole-1.2.1.dist-info"
    raw = zipped(
        {
            **members,
            f"{info}/METADATA": b"Metadata-Version: 2.1\nName: recbole\nVersion: 1.2.1\n",
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": b"",
        }
    )
    (folder / "recbole-1.2.1-py3-none-any.whl").write_bytes(raw)
    return raw


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Leave pip nothing but a folder of wheels, which is given, and the web nothing at all."""
    for name in [name for name in os.environ if name.upper().startswith("PIP_")]:
        monkeypatch.delenv(name)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, NOWHERE)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # urllib keeps the first opener of the process, with the proxies of that moment
    monkeypatch.setattr(urllib.request, "_opener", None)
    return wheels


def said(_: str) -> None:
    """Take a notice and keep silent."""


# pip -----------------------------------------------------------------------------------------------------------------


def test_members_of_a_pinned_wheel_come_through_a_real_pip(offline: Path) -> None:
    raw = wheel(offline, {"a/b/one.txt": b"1", "two.txt": b"2"})
    found = files_from_wheel(WHEEL, hashlib.sha256(raw).hexdigest(), ["a/b/one.txt"])
    assert found == {"one.txt": b"1"}


def test_another_wheel_of_the_same_name_is_refused(offline: Path) -> None:
    raw = wheel(offline, {})
    with pytest.raises(DatasetUnavailable) as caught:
        files_from_wheel(WHEEL, WHEEL_SHA256, [])
    assert hashlib.sha256(raw).hexdigest() in str(caught.value)
    assert WHEEL_SHA256 in str(caught.value)


def test_a_wheel_without_the_member_is_refused(offline: Path) -> None:
    raw = wheel(offline, {})
    with pytest.raises(DatasetUnavailable, match=r"ml-100k\.inter"):
        files_from_wheel(WHEEL, hashlib.sha256(raw).hexdigest(), ["ml-100k.inter"])


def test_pip_fails_with_its_last_line_and_prints_nothing(offline: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DatasetUnavailable, match=r"No matching distribution found for recbole==1\.2\.1"):
        files_from_wheel(WHEEL, WHEEL_SHA256, [])
    assert capfd.readouterr() == ("", "")


def test_pip_is_bounded_in_time(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obtain, "PIP_SECONDS", 0.01)
    with pytest.raises(DatasetUnavailable, match="took more than"):
        files_from_wheel(WHEEL, WHEEL_SHA256, [])


def test_with_neither_pip_nor_the_web_one_error_names_both_and_synthetic(offline: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(DatasetUnavailable) as caught:
        load_dataset("movielens-100k", cache=cache, notice=said)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    for words in (
        "pip download recbole==1.2.1 failed",
        "No matching distribution",
        "https://files.grouplens.org/datasets/movielens/ml-100k.zip cannot be reached",
        "--data synthetic",
        "--from FOLDER",
    ):
        assert words in text
    assert not cache.exists()


def test_the_small_set_names_its_address_too(offline: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetUnavailable, match=r"ml-latest-small\.zip cannot be reached.*--data synthetic"):
        load_dataset("movielens-latest-small", cache=tmp_path / "cache", notice=said)
    assert not (tmp_path / "cache").exists()


def test_where_fetching_is_not_allowed_nothing_is_asked(offline: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetUnavailable, match="anabranch data fetch movielens-100k"):
        load_dataset("movielens-100k", cache=tmp_path / "cache", fetch=False, notice=said)
    assert not (tmp_path / "cache").exists()


# the web -------------------------------------------------------------------------------------------------------------


class _Pages(BaseHTTPRequestHandler):
    pages: dict[str, bytes] = {}  # noqa: RUF012 - filled by the fixture

    def do_GET(self) -> None:
        content = self.pages.get(self.path)
        if content is None:
            self.send_error(404, "Not Found")
            return
        self.send_response(200)
        announced = len(content) * (2 if self.path == "/broken" else 1)
        self.send_header("Content-Length", str(announced))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Keep silent."""


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve two pages on this machine, one of which breaks off."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    _Pages.pages = {"/file": b"x" * 100_000, "/broken": b"y" * 1000}
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Pages)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_page_arrives_whole_and_progress_is_told(web: str) -> None:
    told: list[tuple[str, int, int]] = []
    assert file_from_web(f"{web}/file", "stage", lambda *step: told.append(step)) == b"x" * 100_000
    assert told[-1] == ("stage", 100_000, 100_000)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


@pytest.mark.parametrize(
    ("path", "words"), [("/gone", "cannot be reached: Not Found"), ("/broken", "broke off|reached")]
)
def test_a_page_that_is_missing_or_breaks_off_is_refused(web: str, path: str, words: str) -> None:
    with pytest.raises(DatasetUnavailable, match=words):
        file_from_web(web + path, "stage", silent)


def test_a_page_that_does_not_end_is_cut(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obtain, "MAX_BYTES", 50_000)
    with pytest.raises(DatasetUnavailable, match="did not end"):
        file_from_web(f"{web}/file", "stage", silent)


# archives and folders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [b"", b"PK", zipped({"a": b"1" * 5000})[:-30], b"\x00" * 100],
    ids=["empty", "beginning", "cut", "zeros"],  # an archive holds the time: two processes would not agree on its name
)
def test_what_is_no_archive_is_refused(raw: bytes) -> None:
    with pytest.raises(DatasetUnavailable, match="not a whole zip"):
        members_of_zip(raw, ["a"], "here")


def test_a_member_with_flipped_bits_is_refused() -> None:
    noise = random.Random(0).randbytes(3000)  # noqa: S311 - nothing secret
    raw = bytearray(zipped({"a": noise}))
    raw[1500] ^= 0xFF
    with pytest.raises(DatasetUnavailable, match="here"):
        members_of_zip(bytes(raw), ["a"], "here")


def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obtain, "MAX_BYTES", 10_000)
    with pytest.raises(DatasetUnavailable, match="larger than"):
        members_of_zip(zipped({"a": b"0" * 1_000_000}), ["a"], "here")


def test_a_path_inside_the_archive_leads_nowhere(tmp_path: Path) -> None:
    assert members_of_zip(zipped({"../../evil.txt": b"1"}), ["../../evil.txt"], "here") == {"evil.txt": b"1"}
    assert list(tmp_path.iterdir()) == []


def test_a_folder_or_an_archive_that_lacks_a_file_is_refused_with_what_would_do(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_bytes(b"1")
    (tmp_path / "archive.zip").write_bytes(zipped({"deep/a": b"1"}))
    for path in (tmp_path / "folder", tmp_path / "archive.zip"):
        assert files_from_path(path, [("a", "b"), ("a",)]) == {"a": b"1"}
        with pytest.raises(DatasetUnavailable, match="a, b or c"):
            files_from_path(path, [("a", "b"), ("c",)])
    for path in (tmp_path / "gone", tmp_path / "folder" / "a"):
        with pytest.raises(DatasetUnavailable, match="cannot be read"):
            files_from_path(path, [("a",)])


# real data -----------------------------------------------------------------------------------------------------------


def test_a_wheel_of_the_users_is_adopted(shared_data: Path, tmp_path: Path) -> None:
    members = {WHEEL_FOLDER + name: (shared_data / "movielens-100k" / name).read_bytes() for name in ATOMIC}
    path = tmp_path / "some.whl"
    path.write_bytes(zipped(members))
    assert set(MOVIELENS_100K.adopt(path).files) == set(ATOMIC)


def test_a_copy_is_adopted_once_and_then_no_network_is_needed(offline: Path, shared_data: Path, tmp_path: Path) -> None:
    cache, notices = tmp_path / "cache", list[str]()
    folder = shared_data / "movielens-100k"
    fetched = fetch_dataset("movielens-100k", origin=folder, cache=cache, notice=notices.append)
    loaded = load_dataset("movielens-100k", cache=cache, notice=notices.append)
    assert loaded.interactions == fetched.interactions
    assert len(notices) == 1
    assert "GroupLens" in notices[0]


def test_a_damaged_copy_is_noticed_and_kept_out(offline: Path, shared_data: Path, tmp_path: Path) -> None:
    cache, notices = tmp_path / "cache", list[str]()
    folder = shared_data / "movielens-100k"
    fetched = fetch_dataset("movielens-100k", origin=folder, cache=cache, notice=said)
    path = cache / "datasets" / "movielens-100k" / "ml-100k.inter"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\t5\t", b"\t1\t", 1))
    with pytest.raises(DatasetUnavailable, match=r"damaged.*ml-100k\.inter"):
        load_dataset("movielens-100k", cache=cache, fetch=False, notice=said)
    # allowed to fetch, it says so and tries; here nothing can be reached
    with pytest.raises(DatasetUnavailable, match="could not be obtained"):
        load_dataset("movielens-100k", cache=cache, notice=notices.append)
    assert "damaged" in notices[0]
    # and a good copy mends it
    fetch_dataset("movielens-100k", origin=folder, cache=cache, notice=said)
    assert load_dataset("movielens-100k", cache=cache, notice=said).interactions == fetched.interactions


@pytest.mark.slow
def test_the_pinned_wheel_from_the_configured_index(tmp_path: Path) -> None:
    cache, notices = tmp_path / "cache", list[str]()
    try:
        fetched = load_dataset("movielens-100k", cache=cache, notice=notices.append)
    except DatasetUnavailable as error:
        pytest.skip(str(error))
    assert len(fetched.interactions) == 100_000
    assert len(notices) == 1
    # a damaged copy is obtained again, and mended
    path = cache / "datasets" / "movielens-100k" / "ml-100k.item"
    path.write_bytes(path.read_bytes()[:-1])
    mended = load_dataset("movielens-100k", cache=cache, notice=notices.append)
    assert mended.interactions == fetched.interactions
    assert "damaged" in notices[1]
    assert load_dataset("movielens-100k", cache=cache, fetch=False, notice=said).interactions == fetched.interactions
