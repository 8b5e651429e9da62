"""A real browser, without a window: what it makes of a page."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NO_BROWSER = "none of chromium, chromium-browser and google-chrome is installed"
# Headless windows are not narrower than 500 pixels: the page lies in a frame of the width of a phone, and tells the
# frame's page what it found.
_INSIDE = """<script>
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(part => part.open = true);
  parent.postMessage(JSON.stringify({
    width: innerWidth,
    room: document.documentElement.clientWidth,
    needed: document.documentElement.scrollWidth,
    pictures: [...document.images].map(image => [image.alt, image.naturalWidth, image.getBoundingClientRect().width]),
    headings: [...document.querySelectorAll("h1,h2,summary")].map(heading => heading.textContent),
    paper: getComputedStyle(document.body).backgroundColor,
    fetched: performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !/^data:/.test(name)),
  }), "*");
});
</script>"""
_OUTSIDE = """<!doctype html><title>frame</title><iframe src="inside.html" width="{width}" height="800"></iframe>
<p id="found"></p><script>
addEventListener("message", event => document.getElementById("found").textContent = event.data);
</script>"""


@dataclass(frozen=True)
class Seen:
    """A page as a browser shows it.

    Attributes:
        width: of the window, pixels.
        room: the same without a scroll bar.
        needed: width that the page takes, pixels; more than there is room for has to be scrolled.
        pictures: alternative text, own width and width shown, pixels; 0 where it could not be decoded.
        headings: in order.
        paper: colour of the background.
        fetched: addresses of what it wanted besides itself.
        complaints: lines of the console.
    """

    width: int
    room: int
    needed: int
    pictures: list[list[str | float]]
    headings: list[str]
    paper: str
    fetched: list[str]
    complaints: list[str]


def look_at(page: Path, folder: Path, width: int = 390, dark: bool = False) -> Seen:
    """Open a page, cut off from any network, in a window of a width; `folder` is for what that needs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "inside.html").write_text(page.read_text() + _INSIDE)
    (folder / "outside.html").write_text(_OUTSIDE.format(width=width))
    command = [BROWSER, "--headless=new", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=20000"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    command += ["--no-sandbox"] if os.geteuid() == 0 else []
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run(
        [*command, (folder / "outside.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    found = re.search(r'<p id="found">(.+?)</p>', done.stdout)
    assert found is not None, done.stderr[-2000:]
    complaints = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return Seen(**json.loads(html.unescape(found[1])), complaints=complaints)
