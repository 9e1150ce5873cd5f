"""A headless browser for tests: the DevTools protocol over a pipe, with nothing to install."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --remote-debugging-pipe"
)
PATIENCE = 60.0  # seconds for any one answer


class Browser:
    """One browser process with one tab; `with` ends it."""

    def __init__(self, home: Path):
        # The browser reads commands at descriptor 3 and answers at 4.
        wire = 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1'
        command = [str(BROWSER), *FLAGS.split(), f"--user-data-dir={home}/profile", "about:blank"]
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", wire, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "HOME": str(home)},
        )
        self.count, self.unread, self.session = 0, b"", None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()

    def message(self) -> dict[str, Any]:
        """The next answer or event."""
        assert self.process.stdout
        end = time.monotonic() + PATIENCE
        while b"\0" not in self.unread:
            ready, _, _ = select.select([self.process.stdout], [], [], end - time.monotonic())
            if not ready:
                raise TimeoutError("the browser does not answer")
            got = os.read(self.process.stdout.fileno(), 1 << 20)
            if not got:
                raise EOFError("the browser has gone")
            self.unread += got
        one, self.unread = self.unread.split(b"\0", 1)
        return json.loads(one)

    def call(self, method: str, **parameters: Any) -> Any:
        """Send one command and give its result; events on the way are kept."""
        assert self.process.stdin
        self.count += 1
        sent: dict[str, Any] = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            sent["sessionId"] = self.session
        self.process.stdin.write(json.dumps(sent).encode() + b"\0")
        while True:
            got = self.message()
            if got.get("id") == self.count:
                assert "error" not in got, f"{method}: {got}"
                return got["result"]
            self.events.append(got)

    def open(
        self, url: str, *, width: int = 1000, height: int = 800, script: bool = True,
        dark: bool = False,
    ) -> float:  # fmt: skip
        """Load a page; give the seconds until it is loaded and painted."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 500,
        )  # fmt: skip
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.go("about:blank")
        began = time.monotonic()
        self.go(url)
        if script:
            self("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
        return time.monotonic() - began

    def go(self, url: str) -> None:
        """Navigate, and wait for the load event."""
        self.events = []
        self.call("Page.navigate", url=url)
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self.message())

    def __call__(self, expression: str) -> Any:
        """The value of an expression, or what its promise comes to, in the page."""
        got = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in got, got["exceptionDetails"]
        return got["result"].get("value")

    def press(self, key: str, *, text: str = "", code: int = 0) -> None:
        """Press and release a key, as a person does."""
        pressed = {"key": key, "windowsVirtualKeyCode": code}
        typed = {"text": text} if text else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **pressed, **typed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def picture(self, path: str | Path, *, whole: bool = False) -> None:
        """Write what is seen as a PNG, for a person's eyes."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    def requests(self) -> list[str]:
        """What the page has asked for since it was opened."""
        sent = [e for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [e["params"]["request"]["url"] for e in sent]

    def complaints(self) -> list[Any]:
        """Errors of the page's script since it was opened."""
        return [e for e in self.events if e.get("method") == "Runtime.exceptionThrown"]
