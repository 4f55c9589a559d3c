"""Test that nothing is left of a command after the process that started it has ended, for whatever reason."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from flows import leash
from tests.conftest import wait_for

# The child ignores SIGTERM and leads its own session, like the workers of distributed training. Each writes its pid.
STUBBORN = """
import os, pathlib, signal, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
if len(sys.argv) == 2:
    subprocess.Popen([sys.executable, __file__, sys.argv[1], "child"], start_new_session=True)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
(folder / f"{len(sys.argv)}.pid").write_text(str(os.getpid()))
time.sleep(600)
"""


def start(tmp_path: Path) -> tuple[list[str], list[Path]]:
    script = tmp_path / "stubborn.py"
    script.write_text(STUBBORN)
    return [sys.executable, leash.__file__, sys.executable, str(script), str(tmp_path)], [
        tmp_path / "2.pid",
        tmp_path / "3.pid",
    ]


def read_pids(notes: list[Path]) -> list[int]:
    return [int(note.read_text()) for note in notes if note.exists() and note.read_text()]


def test_the_status_is_passed_on() -> None:
    command = [sys.executable, leash.__file__, sys.executable, "-c", "raise SystemExit(7)"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.wait() == 7


def test_closing_the_leash_ends_all_descendants(tmp_path: Path) -> None:
    command, notes = start(tmp_path)
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    pids = wait_for(lambda: len(found := read_pids(notes)) == 2 and found, 20, "both processes")
    assert process.stdin
    process.stdin.close()
    assert process.wait(timeout=20) == 137
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in pids), 5, "the end of both")


@pytest.mark.slow
@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM"])
def test_a_dead_starter_ends_all_descendants(tmp_path: Path, signal: str) -> None:
    command, notes = start(tmp_path)
    starter = f"import subprocess; subprocess.Popen({command!r}, stdin=subprocess.PIPE).wait()"
    process = subprocess.Popen([sys.executable, "-c", starter])
    pids = wait_for(lambda: len(found := read_pids(notes)) == 2 and found, 20, "both processes")
    getattr(process, {"SIGKILL": "kill", "SIGTERM": "terminate"}[signal])()
    process.wait()
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in pids), 20, "the end of both")
