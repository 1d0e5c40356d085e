"A page of a headless Chromium (Playwright), with its errors and the addresses it requested."

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Error, Page, sync_playwright

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
REQUIRED = os.environ.get("MEDGAN_BROWSER") == "required"  # where it could have been installed
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None and not REQUIRED,
    reason="no chromium here (CHROMIUM names none); apt install chromium",
)
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LOCAL = ("file:", "data:", "blob:", "about:", "chrome")
LOCAL += tuple(
    f"{scheme}://{host}" for scheme in ("http", "ws") for host in ("127.0.0.1", "localhost")
)


@dataclass
class PageLog:
    "What went wrong in a page, and the addresses it requested."

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def on_console(self, message) -> None:
        if message.type in ("error", "assert"):
            self.errors.append(f"{message.text} {message.location.get('url', '')}")

    def external(self) -> list[str]:
        "Requests to anything but files, inlined data and this machine."
        return [url for url in self.requests if not url.startswith(LOCAL)]


@contextmanager
def open_page(width: int = 1280, height: int = 800, **options) -> Iterator[tuple[Page, PageLog]]:
    "A page with a profile of its own; `options` are those of a Playwright browser context."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        page = browser.new_page(viewport={"width": width, "height": height}, **options)
        log = PageLog()
        page.on("pageerror", lambda error: log.errors.append(str(error)))
        page.on("console", log.on_console)
        page.on("request", lambda request: log.requests.append(request.url))
        page.on("websocket", lambda socket: log.requests.append(socket.url))
        try:
            yield page, log
        finally:
            browser.close()


def until(page: Page, expression: str, seconds: float = 30):
    """The value of a JavaScript expression once it is true.

    Playwright's `wait_for_function` is forbidden by the content security policy of a reader study.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if value := page.evaluate(expression):
                return value
        except Error:  # the page is changing
            pass
        page.wait_for_timeout(50)
    raise AssertionError(f"waited {seconds:.0f} s for {expression}")


def screenshot(page: Page, name: str) -> None:
    "Keep a screenshot where MEDGAN_SCREENSHOTS names a folder."
    if os.environ.get("MEDGAN_SCREENSHOTS"):
        page.screenshot(path=Path(os.environ["MEDGAN_SCREENSHOTS"]) / name)
