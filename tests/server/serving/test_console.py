"""The page at `/`: it comes without a key, brings all it needs, and a browser runs nothing else on it."""

import re
import shutil
import subprocess
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from server.registry import Registry
from server.serving.app import create_app
from server.serving.bundle import load_bundle
from server.serving.keys import KeyFile
from server.serving.query import QueryTexts
from server.serving.reload import FixedSource
from server.serving.run import serve_in_thread
from tests.server.serving.stores import WordEncoder

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def test_the_page_needs_nothing_from_elsewhere(client: httpx.Client) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.findall(r"https?://|//cdn|<script src|<link rel=.stylesheet", answer.text)
    assert "innerHTML" not in answer.text


def test_only_its_own_script_and_style_may_run(client: httpx.Client) -> None:
    answer = client.get("/")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        assert policy[f"{tag}-src"] == f"'sha256-{b64encode(sha256(inside.encode()).digest()).decode()}'"
        assert len(re.findall(f"<{tag}", answer.text)) == 1
    assert not re.findall(r"\son[a-z]+=|\sstyle=", answer.text)


def test_with_keys_the_page_is_open_and_what_it_asks_is_not(store: Registry, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    keys.new("someone", ["read"])
    app = create_app(FixedSource(store, load_bundle(store)), QueryTexts(lambda name: WordEncoder()), keys=keys)
    with serve_in_thread(app) as running, httpx.Client(base_url=running.url, timeout=60.0) as client:
        assert client.get("/").status_code == 200
        assert client.get("/v1/model").status_code == 401
        assert client.post("/").status_code == 405


@pytest.mark.skipif(BROWSER is None, reason="no browser is here")
def test_a_browser_shows_the_served_model(service: str, tmp_path: Path) -> None:
    assert BROWSER is not None
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=8000",
    ]
    shown = subprocess.run(
        [BROWSER, *options, "--dump-dom", f"{service}/"], capture_output=True, text=True, timeout=120, check=True
    )
    assert re.search(r'<span id="model"[^>]*>model v000001 · 20 items', shown.stdout)
