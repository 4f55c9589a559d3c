"""Who shares the machine does not take its cores by waiting."""

import subprocess
import sys
from pathlib import Path

import pytest

import stages
from tests.conftest import PROJECT

linux = pytest.mark.skipif(not stages.LOAD.exists(), reason="needs Linux's count of what runs")


def spin_count(inherited: str) -> str:
    """Of a process in whose environment it is `inherited`."""
    code = "import os, stages; print(os.environ['GOMP_SPINCOUNT'])"
    environment = {"GOMP_SPINCOUNT": inherited}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.strip()


@linux
@pytest.mark.parametrize("inherited", [stages.LONG, stages.SHORT])
def test_beside_another_process_at_work_threads_spin_for_a_short_time(inherited: str) -> None:
    with subprocess.Popen([sys.executable, "-c", "print('at work', flush=True)\nwhile True: pass"], stdout=-1) as other:
        assert other.stdout
        other.stdout.readline()
        try:
            assert spin_count(inherited) == stages.SHORT
        finally:
            other.kill()


@linux
def test_what_the_user_sets_is_kept() -> None:
    assert spin_count("77") == "77"


@pytest.mark.parametrize(("running", "idle"), [(1, True), (2, False), (10, False)])
def test_idle_is_a_machine_where_nothing_else_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, running: int, idle: bool
) -> None:
    monkeypatch.setattr(stages, "LOAD", tmp_path / "loadavg")
    stages.LOAD.write_text(f"0.20 0.18 0.12 {running}/80 11206\n")
    assert stages.machine_is_idle() is idle
