"""A headless Chromium, spoken to through a pipe: no port, no driver, no package. For tests and pictures of pages."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")
_QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-quic", "--hide-scrollbars", "--remote-debugging-pipe"),
)


@dataclass
class Browser:
    """One page of it."""

    ask: int
    """File descriptors of the pipes."""
    answer: int
    session: str = ""
    heard: list[dict[str, Any]] = field(default_factory=list)
    """Events that came meanwhile."""
    _number: int = 0
    _rest: bytes = b""

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A method of Chromium's DevTools protocol."""
        self._number += 1
        request = {"id": self._number, "method": method, "params": params}
        request |= {"sessionId": self.session} if self.session else {}
        os.write(self.ask, json.dumps(request).encode() + b"\0")
        while True:
            message = self._next()
            if message.get("id") == self._number:
                assert "error" not in message, message["error"]
                return dict(message["result"])
            self.heard.append(message)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self.answer, 1 << 16)
            assert piece, "the browser has ended"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def open(self, address: str, width: int, scheme: str = "light", media: str = "screen", height: int = 900) -> None:
        """Loads it at so many pixels' width and height; `scheme`: light or dark; `media`: screen or print."""
        self.heard.clear()
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)
        mobile = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.call("Page.navigate", url=address)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.heard):
            self.heard.append(self._next())

    def value(self, expression: str) -> Any:
        """Of an expression of JavaScript, as JSON has it."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def complaints(self) -> list[str]:
        """Errors and warnings of the console."""
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self.heard if event.get("method") in kinds]

    def requests(self) -> list[str]:
        """Addresses that were asked for."""
        sent = (event for event in self.heard if event.get("method") == "Network.requestWillBeSent")
        return [event["params"]["request"]["url"] for event in sent]

    def picture(self, target: Path, height: int | None = None) -> None:
        """Of the whole page, or of its upper part."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height or size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        target.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser() -> Iterator[Browser]:
    """Raises FileNotFoundError where there is no Chromium."""
    if PROGRAM is None:
        raise FileNotFoundError("chromium: install it: apt-get install chromium")
    asked, ask = os.pipe()
    answer, answered = os.pipe()

    def its_ends() -> None:
        for fd, high in ((asked, 13), (answered, 14)):  # where it looks for them; either may be 3 or 4 now
            os.dup2(fd, high)
        for high, low in ((13, 3), (14, 4)):
            os.dup2(high, low)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        argv = [PROGRAM, *_QUIET, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(
            argv, preexec_fn=its_ends, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(asked)
        os.close(answered)
        try:
            page = Browser(ask, answer)
            found = page.call("Target.getTargets")["targetInfos"]
            target = next(one["targetId"] for one in found if one["type"] == "page")
            page.session = page.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.call(f"{domain}.enable")
            yield page
        finally:
            process.terminate()
            process.wait(30)
            os.close(ask)
            os.close(answer)
