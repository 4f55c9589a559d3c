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
    """Install Debian's Chromium as root, otherwise Playwright's; if that fails, say so and continue without one."""
    commands = [[sys.executable, "-m", "playwright", "install", "chromium"]]
    if shutil.which("apt-get") and os.geteuid() == 0:
        quietly = ["apt-get", "-qq", "-o", "Dpkg::Use-Pty=0"]
        commands = [[*quietly, "update"], [*quietly, "install", "--yes", "--no-install-recommends", "chromium"]]
    print("Installing Chromium for the tests of the pages", flush=True)
    for command in commands:
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=INSTALL_S)
            failure = "\n".join(done.stderr.strip().splitlines()[-1:]) if done.returncode else ""
        except subprocess.TimeoutExpired:
            failure = f"not done within {INSTALL_S} s"
        if failure:
            print(f"`{' '.join(command)}` failed: {failure}; the tests of the pages will be skipped", flush=True)
            return


if __name__ == "__main__":
    with sync_playwright() as playwright:
        if not find_browser(playwright):
            install_browser()
