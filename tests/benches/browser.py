"""Headless Chromium, spoken to over a pipe by its DevTools protocol: no network, no driver."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
_SECONDS = 60.0

# Every piece of text, its colour over what lies behind it: the contrast ratio of WCAG 2.2, 1.4.3.
CONTRAST = """
(() => {
  const number = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = element => {
    for (let each = element; each; each = each.parentElement) {
      const color = number(getComputedStyle(each).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim(), element = walker.currentNode.parentElement;
    if (!text || !element.checkVisibility()) continue;
    const style = getComputedStyle(element), svg = element.namespaceURI.endsWith("svg");
    const [a, b] = [light(number(svg ? style.fill : style.color)), light(behind(element))].sort((p, q) => q - p);
    found.push([(a + 0.05) / (b + 0.05), text.slice(0, 40)]);
  }
  return found.sort((p, q) => p[0] - q[0]);
})()
"""
# What sticks out to the right of the window, unless its own box scrolls or hides it.
WIDER = """
[...document.querySelectorAll("body *")].filter(each => each.getBoundingClientRect().right > innerWidth + 0.5
  && !each.closest("caption, .hidden, thead")).map(each => each.outerHTML.slice(0, 90))
"""


class Browser:
    """One process; every page is a tab of its own."""

    def __init__(self, folder: Path) -> None:
        program = next((path for path in map(shutil.which, NAMES) if path), None)
        if program is None:
            raise RuntimeError("Chromium is missing: apt-get install -y chromium")
        read, self._write = os.pipe()
        self._read, write = os.pipe()
        options = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --remote-debugging-pipe"
        # The protocol's pipes are descriptors 3 and 4 of the browser.
        command = f'exec "$0" {options} --user-data-dir="$1" 3<&{read} 4>&{write}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, program, str(folder / "profile")],
            pass_fds=(read, write),
            env={**os.environ, "HOME": str(folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)
        self._number, self._rest, self.events = 0, b"", []  # type: int, bytes, list[dict[str, Any]]

    def ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """One command; what it answers."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._number:
                assert "error" not in found, found["error"]
                answer: dict[str, Any] = found["result"]
                return answer
            self.events.append(found)

    def wait_for(self, event: str) -> None:
        """Until the browser has said it, now or before."""
        while not any(each.get("method") == event for each in self.events):
            self.events.append(self._next())

    def close(self) -> None:
        os.close(self._write)  # which ends it
        try:
            self._process.wait(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            data = os.read(self._read, 1 << 20)
            if not data:
                raise RuntimeError("Chromium ended before it answered")
            self._rest += data
        one, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(one)
        return found


class Page:
    """A file in a tab of a given width."""

    def __init__(self, browser: Browser, file: Path, width: int, dark: bool = False) -> None:
        self._browser, browser.events = browser, []
        self._target = browser.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.ask("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=scheme)
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600)
        self.ask("Page.enable")
        self.ask("Network.enable")
        self.ask("Log.enable")
        started = time.monotonic()
        self.ask("Page.navigate", url=file.resolve().as_uri())
        browser.wait_for("Page.loadEventFired")
        self.seconds = time.monotonic() - started

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.ask(method, self._session, **parameters)

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def requests(self) -> list[str]:
        """Addresses that were asked for."""
        sent = (each for each in self._browser.events if each.get("method") == "Network.requestWillBeSent")
        return [each["params"]["request"]["url"] for each in sent]

    def tree(self) -> list[dict[str, Any]]:
        """What a screen reader is told: `role`, `name`, `level` and `id`, `parent` of every node, in order."""
        nodes = self.ask("Accessibility.getFullAXTree")["nodes"]
        return [
            {
                "role": node["role"]["value"],
                "name": node.get("name", {}).get("value", ""),
                "level": next((each["value"]["value"] for each in node.get("properties", ()) if each["name"] == "level"), 0),
                "id": node["nodeId"],
                "parent": node.get("parentId"),
            }
            for node in nodes
            if not node["ignored"]
        ]  # fmt: skip

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        data = self.ask("Page.captureScreenshot", captureBeyondViewport=True, format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        self._browser.ask("Target.closeTarget", targetId=self._target)


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser whose profile is in `folder`."""
    found = Browser(folder)
    try:
        yield found
    finally:
        found.close()
