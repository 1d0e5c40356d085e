"""A headless Chromium driven over its DevTools protocol: open, press keys, click, evaluate, look;
and what it asked the network for.
"""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

FOUND = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_chromium = pytest.mark.skipif(
    FOUND is None, reason="no chromium here (CHROMIUM names none); apt install chromium"
)


class Browser:
    "One page of a headless Chromium with a profile of its own; use it in a `with`."

    def __init__(self, profile: Path, width: int = 1280, height: int = 800):
        self.profile, self.size, self.count = profile, (width, height), 0
        self.errors, self.requests = [], []

    def __enter__(self):
        from websocket import create_connection

        words = [
            FOUND,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-extensions",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--remote-debugging-port=0",
            "--remote-allow-origins=*",
            f"--user-data-dir={self.profile}",
            "--window-size={},{}".format(*self.size),
            "about:blank",
        ]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file = self.profile / "DevToolsActivePort"
        port = wait(
            lambda: port_file.exists() and port_file.read_text().split()[0], 60, "Chromium to start"
        )
        self.socket = create_connection(
            f"ws://127.0.0.1:{port}{port_file.read_text().split()[1]}", timeout=60
        )
        targets = self.call("Target.getTargets", session=None)["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        self.session = self.call(
            "Target.attachToTarget", session=None, targetId=target, flatten=True
        )["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setFocusEmulationEnabled", enabled=True
        )  # without a focused page JupyterLab has no current notebook
        return self

    def __exit__(self, *_):
        try:
            self.call("Browser.close", session=None)
            self.socket.close()
            self.process.wait(timeout=20)
        except Exception:
            self.process.kill()
            self.process.wait()

    def call(self, method: str, session: str | None = "own", **params) -> dict:
        "Send a command and wait for its answer; events that come meanwhile are noted."
        self.count += 1
        message = {"id": self.count, "method": method, "params": params} | (
            {"sessionId": self.session} if session else {}
        )
        self.socket.send(json.dumps(message))
        while True:
            found = json.loads(self.socket.recv())
            if found.get("id") == self.count:
                assert "error" not in found, (method, found.get("error"))
                return found["result"]
            self.note(found)

    def note(self, event: dict) -> None:
        "Keep console errors, exceptions and requests."
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(
                params["exceptionDetails"].get("exception", {}).get("description")
                or params["exceptionDetails"]["text"]
            )
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(
                " ".join(str(a.get("value", a.get("description"))) for a in params["args"])
            )
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def js(self, expression: str):
        "Evaluate JavaScript, promises awaited; an exception in it fails the test."
        found = self.call(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def open(self, url: str, ready: str = "true", seconds: float = 60) -> None:
        "Go to a page and wait until it is loaded and `ready` holds."
        self.call("Page.navigate", url=url)
        self.until(
            "document.readyState === 'complete' && location.href !== 'about:blank' && "
            f"Boolean({ready})",
            seconds,
        )

    def reload(self, ready: str = "true") -> None:
        self.js("window.stale = true")
        self.call("Page.reload")
        self.until(f"document.readyState === 'complete' && !window.stale && Boolean({ready})")

    def until(self, expression: str, seconds: float = 30):
        "Wait until an expression holds; returns its value."
        return wait(lambda: self.attempt(expression), seconds, expression)

    def attempt(self, expression: str):
        "The value of an expression, or None while the page is changing under it."
        found = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        return None if "exceptionDetails" in found else found["result"].get("value")

    def press(self, key: str) -> None:
        "Press and release a key: a letter, a digit, `Enter`, `Escape`, `Tab` or `ArrowRight`."
        named = {"Enter": ("\r", 13), "Escape": ("", 27), "Tab": ("\t", 9), "ArrowRight": ("", 39)}
        text, code = named.get(key, (key, ord(key.upper()) if len(key) == 1 else 0))
        shared = {
            "key": key,
            "windowsVirtualKeyCode": code,
            "code": key if key in named else f"{'Digit' if key.isdigit() else 'Key'}{key.upper()}",
        }
        self.call(
            "Input.dispatchKeyEvent", type="keyDown", **shared, **({"text": text} if text else {})
        )
        self.call("Input.dispatchKeyEvent", type="keyUp", **shared)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def click(self, selector: str, times: int = 1) -> None:
        "Click in the middle of an element; `times=2` is a double click."
        box = self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'center'}); "
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / "
            "2]; })()"
        )
        for k in range(1, times + 1):
            for kind in ("mousePressed", "mouseReleased"):
                self.call(
                    "Input.dispatchMouseEvent",
                    type=kind,
                    x=box[0],
                    y=box[1],
                    button="left",
                    clickCount=k,
                )

    def downloads_to(self, folder: Path) -> None:
        self.call(
            "Browser.setDownloadBehavior", session=None, behavior="allow", downloadPath=str(folder)
        )

    def resize(self, width: int, height: int, mobile: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=mobile,
        )

    def screenshot(self, path: Path, whole: bool = False) -> Path:
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)[
            "data"
        ]
        path.write_bytes(base64.b64decode(data))
        return path

    def left_the_machine(self) -> list[str]:
        "Requests to anything but files, inlined data and this machine."
        own = (
            "file:",
            "data:",
            "blob:",
            "about:",
            "http://127.0.0.1",
            "http://localhost",
            "ws://127.0.0.1",
            "ws://localhost",
            "chrome",
        )
        return [url for url in self.requests if not url.startswith(own)]


def wait(attempt, seconds: float, what: str):
    "Ask again and again until something holds; returns it."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = attempt()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds:.0f} s for {what}")
