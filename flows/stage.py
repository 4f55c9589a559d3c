"""Run stages with `dvc repro --single-item` in processes that end with this one, and relay each line of the output."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

from flows import leash
from stages.core.files.errors import UserError

LAST_LINES = 20  # of the output, for the error message
SETTLE_S = 10  # seconds that the leash has to end its processes


class Outcome(StrEnum):
    """Name what DVC did to bring a stage up to date."""

    RAN = "Ran"
    RESTORED = "Restored"  # DVC's cache had the outputs for these inputs.
    UNCHANGED = "Unchanged"


class StageError(UserError):
    """Report that a stage has failed; `temporary` says whether a retry may succeed."""

    def __init__(self, stage: str, lines: list[str], *, temporary: bool) -> None:
        super().__init__("\n".join([f"stage '{stage}' failed:", *lines]))
        self.stage, self.lines, self.temporary = stage, lines, temporary


class StageRunner:
    """Run stages of the project in `folder`, from any number of threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: set[subprocess.Popen[str]] = set()
        self.stopped = False

    def run(self, stage: str, on_line: Callable[[str], object], *, force: bool = False) -> Outcome:
        """Bring one stage up to date, provided that its upstream stages are; raise `StageError` if it fails."""
        output: list[str] = []
        status = self.dvc(["repro", "--single-item", *(["--force"] if force else []), stage], output.append, on_line)
        text = "\n".join(output)
        if status != 0:
            # The stage exits with EX_TEMPFAIL (sysexits.h), or another process has locked the project.
            busy = "Unable to acquire lock" in text or "is busy, it is being blocked by" in text
            temporary = busy or f"exited with {os.EX_TEMPFAIL}" in text
            raise StageError(stage, output[-LAST_LINES:], temporary=temporary)
        if re.search(r"^Running stage ", text, re.MULTILINE):
            return Outcome.RAN
        return Outcome.RESTORED if "is cached - skipping run, checking out outputs" in text else Outcome.UNCHANGED

    def dvc(self, arguments: list[str], *on_line: Callable[[str], object]) -> int:
        """Run a DVC command in the folder and return its exit status."""
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        with subprocess.Popen(
            [sys.executable, leash.__file__, sys.executable, "-m", "dvc", *arguments],
            cwd=self.folder,
            env={**os.environ, "PATH": programs, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Only the flow handles ctrl-C.
        ) as process:
            self.running.add(process)
            try:
                if self.stopped:
                    release(process)
                assert process.stdout
                for line in process.stdout:
                    for handle in on_line:
                        handle(line.rstrip())
                return process.wait()
            finally:
                release(process)
                self.running.discard(process)

    def stop(self) -> None:
        """End all running stages with their descendants, and prevent others from starting."""
        self.stopped = True
        for process in list(self.running):
            release(process)


def release(process: subprocess.Popen[str]) -> None:
    """Close the leash, and kill whatever is then left of the session."""
    assert process.stdin
    with suppress(BrokenPipeError):
        process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(SETTLE_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
