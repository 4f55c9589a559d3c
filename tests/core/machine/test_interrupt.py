"""Test that ctrl-C ends a program without a traceback, from its first import on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import PROJECT


def interrupt(command: list[str], folder: Path, library: str) -> subprocess.CompletedProcess[str]:
    """Send ctrl-C's signal to the command as soon as it has loaded the library."""
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        while library not in maps.read_text() and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists what a process has loaded")
@pytest.mark.parametrize(
    ("program", "library"),
    [
        ("stages.download", "pydantic_core"),
        ("stages.train", "polars"),
        ("stages.train", "libtorch_cpu"),
        ("flows.predict", "polars"),
        ("serving.app", "pydantic_core"),
    ],
)
def test_a_program_interrupted_while_it_imports_is_silent(tmp_path: Path, program: str, library: str) -> None:
    # On a busy machine the signal may come too late, when the program has already ended for lack of params or a model.
    attempts = [interrupt(["-m", program], tmp_path, library) for _ in range(3)]
    assert not [done.stderr for done in attempts if "Traceback" in done.stderr]
    assert (130, "", "") in [(done.returncode, done.stdout, done.stderr) for done in attempts]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists what a process has loaded")
def test_a_program_that_imports_a_stage_keeps_keyboard_interrupt(tmp_path: Path) -> None:
    code = "try:\n    import stages.download\nexcept KeyboardInterrupt:\n    print('kept')"
    done = interrupt(["-c", code], tmp_path, "polars")
    assert (done.returncode, done.stdout) == (0, "kept\n")
