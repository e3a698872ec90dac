"""A real browser without a window: Chromium, spoken to by its own protocol over two pipes."""

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
ADVICE = "no Chromium here: apt install chromium"


def program():
    """The path of the browser, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a browser; everything that it asked the network for is in `requests`, every
    message of an error in `errors`.
    """

    def __init__(self, seconds=60.0):
        self._seconds, self._numbers, self._buffer = seconds, itertools.count(1), b""
        self.requests, self.errors = [], []
        self._folder = tempfile.mkdtemp(prefix="browser-")
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
        # the protocol is spoken on the descriptors 3 and 4
        moved = f'exec 5<&{to_browser} 6>&{from_browser} 3<&5 4>&6 5<&- 6>&-; exec "$@"'
        command = [program(), *options, "--remote-debugging-pipe", f"--user-data-dir={self._folder}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", moved, "bash", *command],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        with contextlib.suppress(Exception):
            self._session = None
            self.call("Browser.close")
        self._process.wait(30)
        os.close(self._out)
        os.close(self._in)
        shutil.rmtree(self._folder, ignore_errors=True)

    def call(self, method, **parameters):
        """What the browser answers to a method of its protocol."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        until = time.monotonic() + self._seconds
        while True:
            answer = self._next(until)
            if answer.get("id") == number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                return answer["result"]

    def _next(self, until):
        while b"\0" not in self._buffer:
            if not select.select([self._in], [], [], max(0.0, until - time.monotonic()))[0]:
                raise AssertionError("the browser does not answer")
            part = os.read(self._in, 1 << 20)
            if not part:
                raise AssertionError("the browser is gone")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        said = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(said["exceptionDetails"].get("exception", {}).get("description", ""))
        if message.get("method") == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.errors.append(said["entry"]["text"])
        return message

    def open(self, page, width=1400, height=900, touch=False):
        """Load a file or an address, in a window of that many pixels."""
        self.resize(width, height, touch)
        self.call("Page.navigate", url=page.as_uri() if isinstance(page, Path) else page)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def resize(self, width, height, touch=False):
        """Give the window that many pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch)
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)

    def run(self, script):
        """The value of an expression in the page, as JSON; a promise is waited for."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, condition):
        """Wait until an expression is true in the page; a name that the page's script has yet to
        define, since it is loading, makes it false.
        """
        until = time.monotonic() + self._seconds
        early = "if (error instanceof ReferenceError) return false; throw error;"
        guarded = f"(() => {{ try {{ return {condition}; }} catch (error) {{ {early} }} }})()"
        while not self.run(guarded):
            assert time.monotonic() < until, condition
            time.sleep(0.02)

    def middle(self, selector):
        """Where in the window the middle of an element is, scrolled to where it is seen."""
        script = """(() => {
          const found = document.querySelector(%s);
          found.scrollIntoView({ block: "center" });
          const box = found.getBoundingClientRect();
          return [box.x + box.width / 2, box.y + box.height / 2];
        })()"""
        return self.run(script % json.dumps(selector))

    def drag(self, start, end, steps=5):
        """Press the mouse at one place, move to another and let go."""
        self._mouse("mousePressed", *start)
        for step in range(1, steps + 1):
            at = [a + (b - a) * step / steps for a, b in zip(start, end, strict=True)]
            self._mouse("mouseMoved", *at)
        self._mouse("mouseReleased", *end)

    def click(self, selector):
        """Click into the middle of an element."""
        at = self.middle(selector)
        self.drag(at, at, 1)

    def _mouse(self, kind, x, y):
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def touch(self, start, end, steps=5):
        """Put a finger down at one place, move to another and lift it."""
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": start[0], "y": start[1]}])
        for step in range(1, steps + 1):
            x, y = (a + (b - a) * step / steps for a, b in zip(start, end, strict=True))
            self.call("Input.dispatchTouchEvent", type="touchMove", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def key(self, name):
        """Press a key and let it go."""
        code = {"Escape": 27, "Tab": 9, "Enter": 13}.get(name, 0)  # of those that the browser itself acts on
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code)

    def screenshot(self, path, whole=True):
        """Write what is seen, or the whole page, as a PNG."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(found["data"]))
