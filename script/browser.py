"""A headless Chromium that shows script/form.html, driven over its DevTools protocol. Standard library only.

`python -m script.browser FOLDER` saves screenshots of the form.
"""

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from script.schema import COMMITTED

Json = dict[str, Any]

FORM = Path(__file__).with_name("form.html")
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
SCREEN = 1000, 1800
"""(width, height) of a screen of the form, in pixels."""


class BrowserError(Exception):
    """The browser is missing, has ended, or refused a command."""


class Page:
    """A page of the browser. Every method waits for its effect and may raise BrowserError."""

    def __init__(self, commands: IO[bytes], replies: IO[bytes]) -> None:
        self._commands, self._replies = commands, replies
        self._count = 0
        self._session: str | None = None

    def call(self, method: str, **params: Any) -> Json:
        """Send one command of the DevTools protocol: https://chromedevtools.github.io/devtools-protocol/."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        try:
            self._commands.write(json.dumps(message).encode() + b"\0")
            self._commands.flush()
        except OSError as error:
            raise BrowserError(f"{method}: the browser has ended") from error
        while (reply := self._next())["id"] != self._count:
            pass
        if "error" in reply:
            raise BrowserError(f"{method}: {reply['error']['message']}")
        result: Json = reply["result"]
        return result

    def _next(self) -> Json:
        """Return the next reply, skipping events."""
        while True:
            text = bytearray()
            while (letter := self._replies.read(1)) != b"\0":
                if not letter:
                    raise BrowserError("the browser has ended")
                text += letter
            message: Json = json.loads(text)
            if "id" in message:
                return message

    def open(self, address: str) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        width, height = SCREEN
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.enable")
        self.call("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression; await it if it is a promise."""
        made = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in made:
            details = made["exceptionDetails"]
            raise BrowserError(details.get("exception", {}).get("description", details["text"]))
        return made["result"].get("value")

    def type(self, name: str, text: str) -> None:
        """Replace the text of a control as if it was typed."""
        self.run(f"{element(name)}.select()")
        self.call("Input.insertText", text=text)

    def click(self, name: str) -> None:
        """Press the mouse button in the middle of an element that is on the screen."""
        box = self.run(
            f"(box => [box.x + box.width / 2, box.y + box.height / 2])({element(name)}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def choose_files(self, name: str, paths: Sequence[Path]) -> None:
        found = self.call("Runtime.evaluate", expression=element(name))
        files = [str(path) for path in paths]
        self.call("DOM.setFileInputFiles", files=files, objectId=found["result"]["objectId"])

    def picture(self, top: int, height: int) -> bytes:
        """Return a part of the page as PNG."""
        clip = {"x": 0, "y": top, "width": SCREEN[0], "height": height, "scale": 1}
        shot = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(shot["data"])


def element(name: str) -> str:
    """Return the JavaScript expression for the element with this id."""
    return f"document.getElementById({json.dumps(name)})"


def browser() -> str | None:
    """Return the path of a Chromium on this machine; None if there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def opened_form(schema: Json | None = None) -> Iterator[Page]:
    """Open the form of the given or the committed schema in a fresh browser. Raises BrowserError."""
    with tempfile.TemporaryDirectory(prefix="form-") as folder:
        path = Path(folder) / "form.html"
        path.write_text(with_schema(schema or json.loads(COMMITTED.read_text(encoding="utf-8"))), encoding="utf-8")
        with opened(path.as_uri()) as page:
            yield page


@contextmanager
def opened(address: str) -> Iterator[Page]:
    """Open the form at an address in a fresh browser. Raises BrowserError."""
    with (
        tempfile.TemporaryDirectory(prefix="form-", ignore_cleanup_errors=True) as folder,
        started(Path(folder)) as page,
    ):
        page.open(address)
        page.run("new Promise(done => document.readyState == 'complete' ? done() : addEventListener('load', done))")
        page.run("ready")
        yield page


def with_schema(schema: Json) -> str:
    """Return the form's page with the schema inside, so that it needs no server."""
    inside = json.dumps(schema).replace("</", "<\\/")
    before, place, after = FORM.read_text(encoding="utf-8").partition('id="schema">')
    return f"{before}{place}{inside}{after}"


@contextmanager
def started(profile: Path) -> Iterator[Page]:
    """Run a browser with this profile. It reads commands from file descriptor 3 and replies on 4."""
    program = browser()
    if program is None:
        raise BrowserError(f"there is no {', '.join(NAMES)} here")
    (commands_out, commands_in), (replies_out, replies_in) = os.pipe(), os.pipe()
    # bash accepts two-digit descriptors. The first pipe has the lowest numbers, so 3 does not belong to the second.
    shell = f'exec "$@" 3<&{commands_out} 4>&{replies_in}'
    process = subprocess.Popen(
        ["bash", "-c", shell, "bash", program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        pass_fds=(commands_out, replies_in),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(commands_out)
    os.close(replies_in)
    try:
        with open(commands_in, "wb") as commands, open(replies_out, "rb") as replies:
            yield Page(commands, replies)
    finally:
        process.terminate()
        process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m script.browser", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder for the screenshots")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with opened_form() as page:
            height = page.run("document.documentElement.scrollHeight")
            for number, top in enumerate(range(0, height, SCREEN[1]), 1):
                path = folder / f"form-{number}.png"
                path.write_bytes(page.picture(top, min(SCREEN[1], height - top)))
                print(path)
    except BrowserError as error:
        print(f"script/browser: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
