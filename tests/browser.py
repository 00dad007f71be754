"""Headless Chromium as a reader of pages: what is on them, in frames as well, and pictures of them.

Spoken to by its own DevTools protocol over a pair of pipes, JSON texts that end in a zero byte: nothing else is needed.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.project import ROOT

needs_chromium = [
    pytest.mark.browser,
    pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium: `apt-get install chromium` makes these tests run"),
]
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    # It calls nobody: the tests must not depend on a network.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DRIVEN = (
    *FLAGS,
    "--disable-features=IsolateSandboxedIframes",  # MLflow shows pages in such frames; their text is wanted, too
    "--remote-debugging-pipe",
)
READ, WRITE = 3, 4  # Chromium's ends of the pipes
PATIENCE = 120.0  # seconds, on a busy machine


def axe_core() -> Path:
    """axe-core's file, where npm has put it: a folder of NODE_PATH, the project's node_modules, or npm's global one."""
    places = [*os.environ.get("NODE_PATH", "").split(os.pathsep), str(ROOT / "node_modules")]
    if npm := shutil.which("npm"):
        places.append(subprocess.run([npm, "root", "--global"], capture_output=True, text=True, check=False).stdout.strip())
    for path in (Path(place) / "axe-core" / "axe.min.js" for place in places if place):
        if path.is_file():
            return path
    pytest.skip("no axe-core: `npm install --global axe-core` makes this test run")


class Browser:
    """One page."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self._rest = b""
        self._numbers = itertools.count(1)
        self._session: str | None = None
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._ask("Page.enable")

    def open(self, address: str, *texts: str, width: int = 1600, height: int = 1200, dark: bool = False) -> None:
        """Go to an address, and wait until all of `texts` are somewhere on the page."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._ask("Page.navigate", url=address)
        end = time.monotonic() + PATIENCE
        while missing := [text for text in texts if text not in self.text()]:
            if time.monotonic() > end:
                pytest.fail(f"{missing} are not on {address}, but:\n{self.text()}")
            time.sleep(0.3)

    def text(self) -> str:
        """What the page and the frames in it show."""
        return "\n".join(str(text) for text in self.evaluate("document.body ? document.body.innerText : ''"))

    def evaluate(self, expression: str) -> list[Any]:
        """The value of a JavaScript expression in the page and each frame in it."""
        return [value for frame in list(self._frames()) if (value := self._in_frame(frame, expression)) is not None]

    def press(self, key: str) -> None:
        """Press a key, e.g. `Tab`."""
        codes = {"Tab": 9, "Enter": 13, " ": 32}
        for kind in ("keyDown", "keyUp"):
            more = {"text": "\r" if key == "Enter" else key} if kind == "keyDown" and key != "Tab" else {}
            self._ask("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=codes[key], **more)

    def axe(self) -> list[str]:
        """What axe-core finds wrong with the page for those who cannot see it well: rule, and where."""
        faults = "found.violations.flatMap(v => v.nodes.map(n => v.id + ': ' + n.html.slice(0, 160)))"
        # In one expression: each has a world of its own.
        found = self.evaluate(f"{axe_core().read_text(encoding='utf-8')}; axe.run().then(found => {faults})")
        return [str(line) for lines in found for line in lines]

    def screenshot(self, path: Path, *, full: bool = False) -> None:
        """Keep a picture of what is seen, or of all that can be scrolled to."""
        found = self._ask("Page.captureScreenshot", captureBeyondViewport=full)
        path.write_bytes(base64.b64decode(found["data"]))
        print(f"screenshot: {path}")

    def _frames(self) -> Iterator[str]:
        def below(tree: dict[str, Any]) -> Iterator[str]:
            yield tree["frame"]["id"]
            for child in tree.get("childFrames", ()):
                yield from below(child)

        yield from below(self._ask("Page.getFrameTree")["frameTree"])

    def _in_frame(self, frame: str, expression: str) -> Any:
        try:
            world = self._ask("Page.createIsolatedWorld", frameId=frame)["executionContextId"]
            found = self._ask("Runtime.evaluate", expression=expression, contextId=world, returnByValue=True, awaitPromise=True)
        except LookupError:
            return None  # the page has gone on meanwhile
        return found["result"].get("value")

    def _ask(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters, **({"sessionId": self._session} if self._session else {})}
        os.write(self._outgoing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                if "error" in answer:
                    raise LookupError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._incoming, 1 << 20)
            if not more:
                raise ConnectionError("Chromium has ended")
            self._rest += more
        text, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(text)
        return found


@contextmanager
def browsing() -> Iterator[Browser]:
    """A fresh Chromium with a profile of its own."""
    there, outgoing = os.pipe()
    incoming, here = os.pipe()

    def connect() -> None:
        # By way of numbers that are in nobody's way: one pipe's end may be the number that the other is to get.
        first, second = os.dup(there), os.dup(here)
        os.dup2(first, READ)
        os.dup2(second, WRITE)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            ["chromium", *DRIVEN, f"--user-data-dir={profile}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=connect,
            pass_fds=(READ, WRITE),
        )
        for end in (there, here):
            os.close(end)
        try:
            yield Browser(incoming, outgoing)
        finally:
            for end in (outgoing, incoming):  # Chromium ends with its pipes
                os.close(end)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
