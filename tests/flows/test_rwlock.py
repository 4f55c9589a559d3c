"""Test that DVC's rwlock is removed if it is unreadable, and only then."""

import json
import os
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest
from dvc.lock import make_lock

from flows.rwlock import remove_torn_rwlock
from stages.core.files.errors import UserError
from tests.conftest import Clone, wait_for

TORN = ["", '{"write": {"/project/b.txt": {"pid": 4', "{}{}"]


@pytest.fixture
def rwlock(project: Clone) -> Path:
    """Return the path of the rwlock, in a project in which DVC has run."""
    project.run("dvc", "status")
    return project.folder / ".dvc/tmp/rwlock"


def test_dvc_works_again_once_a_torn_rwlock_is_removed(project: Clone, rwlock: Path) -> None:
    for content in TORN:
        rwlock.write_text(content)
        assert "Unable to read RWLock-file" in project.run("dvc", "status", check=False).stdout
        remove_torn_rwlock(project.folder)
        assert not rwlock.exists()
    project.run("dvc", "status")


@pytest.mark.slow
def test_make_run_removes_a_torn_rwlock(project: Clone, rwlock: Path) -> None:
    (project.folder / ".venv").mkdir()
    (project.folder / ".venv/installed").touch()
    rwlock.write_text("")
    done = project.run("make", "run", check=False)  # It fails at the end because these stages write no metrics.
    assert "removed .dvc/tmp/rwlock" in done.stdout
    assert "Running stage 'd'" in done.stdout


def test_a_readable_rwlock_stays(project: Clone, rwlock: Path) -> None:
    content = json.dumps({"write": {str(project.folder / "b.txt"): {"pid": os.getpid(), "cmd": "dvc repro"}}})
    rwlock.write_text(content)
    remove_torn_rwlock(project.folder)
    assert rwlock.read_text() == content


def test_removal_waits_while_dvc_is_writing_the_rwlock(project: Clone, rwlock: Path) -> None:
    rwlock.write_text("")
    with make_lock(str(rwlock.with_name("rwlock.lock"))):
        waiting = Thread(target=remove_torn_rwlock, args=[project.folder])
        waiting.start()
        waiting.join(1)
        assert waiting.is_alive()
        rwlock.write_text("{}")
    wait_for(lambda: not waiting.is_alive(), 20, "its end")
    assert rwlock.read_text() == "{}"


def test_a_torn_rwlock_stays_while_dvc_runs_a_stage(project: Clone, rwlock: Path) -> None:
    command = [sys.executable, "-m", "dvc", "repro"]
    with subprocess.Popen(
        command, cwd=project.folder, env=project.environment({}), stdout=subprocess.PIPE, text=True
    ) as repro:
        assert repro.stdout
        assert any("Running stage 'b'" in line for line in repro.stdout)  # It takes two seconds.
        content = rwlock.read_text()
        rwlock.write_text("{")
        with pytest.raises(UserError, match=f"DVC process {repro.pid} is still at work"):
            remove_torn_rwlock(project.folder)
        assert rwlock.read_text() == "{"
        rwlock.write_text(content)
        repro.stdout.read()
    assert repro.returncode == 0
