"""A headless Chromium as a fixture; a page may ask for nothing but what lies beside it."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="session")
def chromium(missing: Callable[[str, str], NoReturn]) -> Iterator[Any]:
    """Return the browser: that of CHROMIUM, of PATH, or the one that playwright has installed."""
    if importlib.util.find_spec("playwright") is None:
        missing("browser", "driving a browser needs playwright, of the dev extra")
    from playwright.sync_api import sync_playwright

    named = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as driver:
        program = named or driver.chromium.executable_path
        if not Path(program).exists():
            missing("browser", f"no Chromium: neither CHROMIUM, {', '.join(NAMES)} nor {program}")
        browser = driver.chromium.launch(executable_path=program)
        yield browser
        browser.close()


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 64  # a browser opens many connections at once


class Quiet(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], str]]:
    """Return a function that serves a folder as a bucket does: objects at their paths."""
    running = []

    def serve(folder: Path) -> str:
        handler = functools.partial(Quiet, directory=str(folder))
        server = Server(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture
def opened(chromium: Any, served: object) -> Iterator[Callable[..., Any]]:
    """Return a function that opens a page; at the end it must have failed at nothing."""
    contexts, wrong = [], []

    def open_page(place: Path | str, **options: Any) -> Any:
        url = place if isinstance(place, str) else (place / "index.html").absolute().as_uri()
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("console", lambda line: wrong.append(f"console: {line.text}"))
        page.on("dialog", lambda dialog: (wrong.append("dialog"), dialog.dismiss()))
        page.on(
            "response", lambda got: got.status >= 400 and wrong.append(f"{got.status} {got.url}")
        )
        beside = url.rpartition("/")[0]

        def asked(request: Any) -> None:
            if not request.url.startswith((beside, "data:")):
                wrong.append(f"asked for {request.url}")

        page.on("request", asked)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong
