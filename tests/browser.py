"""Find a browser for the tests; `python -m tests.browser` installs Chromium if there is none and nothing is asked."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Playwright, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROME_ON_MACOS = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
ARGUMENTS = ["--disable-gpu", "--disable-quic", "--disable-background-networking"]
INSTALL_S = 600  # An installation that takes longer is abandoned.


def find_browser(playwright: Playwright) -> str | None:
    """Return the path of Playwright's own Chromium, the system's, or Google's Chrome."""
    own = Path(playwright.chromium.executable_path)
    on_path = (shutil.which(name) for name in NAMES)
    places = (str(path) for path in (own, CHROME_ON_MACOS) if path.exists())
    return next(filter(None, (*places, *on_path)), None)


def install_browser() -> None:
    """Install Debian's Chromium as root, otherwise or if that fails Playwright's; say what does not work."""
    ways = [f"{sys.executable} -m playwright install chromium"]
    if shutil.which("apt-get") and os.geteuid() == 0:
        ways.insert(0, "apt-get -qq update && apt-get -qq install --yes --no-install-recommends chromium")
    print("Installing Chromium for the tests of the pages", flush=True)
    for command in ways:
        try:
            done = subprocess.run(["sh", "-c", command], check=False, capture_output=True, text=True, timeout=INSTALL_S)
        except subprocess.TimeoutExpired:
            print(f"`{command}` did not end within {INSTALL_S} s", flush=True)
            continue
        if done.returncode == 0:
            return
        print(f"`{command}` failed: {''.join(done.stderr.strip().splitlines()[-1:])}", flush=True)


if __name__ == "__main__":
    with sync_playwright() as playwright:
        if not find_browser(playwright):
            install_browser()
