"""The page at `/`: ask the model from a browser. One file, nothing from elsewhere, and it may run nothing else."""

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import Response

PAGE = Path(__file__).with_name("console.html")


def policy_of(page: str) -> str:
    """Return the Content-Security-Policy under which the page's own script and style run, and no other."""
    own = {}
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        own[tag] = b64encode(sha256(inside.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{own['script']}'; style-src 'sha256-{own['style']}'; img-src data:;"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def add_console(app: FastAPI) -> None:
    """Let the app answer `GET /` with the page; it holds no data, and asks for what it shows as any caller does."""
    page = PAGE.read_text(encoding="utf-8")
    headers = {"content-security-policy": policy_of(page), "referrer-policy": "no-referrer"}

    @app.get("/", include_in_schema=False)
    async def console() -> Response:
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)
