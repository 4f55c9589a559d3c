"""Test how much memory counts as free, and that freed memory is kept."""

import platform
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from stages.core.machine import memory
from stages.core.machine.memory import fits, free_memory

CPU = torch.device("cpu")


def test_half_of_the_free_memory_may_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 1000)
    assert fits(500, CPU)
    assert not fits(501, CPU)


def test_free_memory_is_at_most_what_the_machine_has() -> None:
    assert 0 < free_memory() <= psutil.virtual_memory().total


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that stands for /, in which this process is in a control group."""
    monkeypatch.setattr(memory, "Path", lambda path: tmp_path / path.removeprefix("/"))
    (tmp_path / "proc/self").mkdir(parents=True)
    return tmp_path


def limit(root: Path, file: str, text: str) -> None:
    (root / "sys/fs/cgroup" / file).parent.mkdir(parents=True, exist_ok=True)
    (root / "sys/fs/cgroup" / file).write_text(text)


def test_without_control_groups_the_machine_is_the_limit(groups: Path) -> None:
    assert free_memory() > 1 << 20


@pytest.mark.parametrize(
    ("listed", "folder", "name"),
    [("0::/user/job", ".", "memory.max"), ("4:cpu,memory:/user/job", "memory", "memory.limit_in_bytes")],
    ids=["version 2", "version 1"],
)
def test_the_lowest_limit_of_a_control_group_and_those_above_it_counts(
    groups: Path, listed: str, folder: str, name: str
) -> None:
    (groups / "proc/self/cgroup").write_text(f"1:pids:/pids\n{listed}\n")
    limit(groups, f"{folder}/user/job/{name}", "max\n")
    assert free_memory() > 1 << 20
    limit(groups, f"{folder}/user/{name}", "70000\n")
    assert free_memory() == 70_000
    limit(groups, f"{folder}/user/job/{name}", "90000\n")
    assert free_memory() == 70_000
    limit(groups, f"{folder}/{name}", "60000\n")
    assert free_memory() == 60_000
    limit(groups, f"{folder}/other/{name}", "5\n")
    assert free_memory() == 60_000


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the memory is kept by glibc")
def test_memory_that_was_freed_is_kept_for_the_next_tensor() -> None:
    # It runs in a process of its own, because what it sets stays. The first tensors find small objects in the way.
    code = """
import resource, torch
from stages.core.machine.memory import keep_freed_memory
keep_freed_memory()
for step in range(50):
    if step == 40:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    pages = 4 * 2**24 // resource.getpagesize()
    assert int(done.stdout) < pages, f"10 tensors of {pages} pages"
