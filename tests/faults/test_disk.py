"""A full or read-only disk, a limit on the size of files, a lack of permission: one line names path and cause."""

import os
import random
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from shutil import copytree

import pytest

from stages.core.artifacts import remove
from tests.conftest import Clone
from tests.faults.conftest import LONG, DataLostError, Faults, check_same
from tests.faults.processes import OUTPUTS, STAGES, contents, run

AMOUNTS = 20 if LONG else 3  # of space that is left
SEED = 5
NOBODY = 65534


@contextmanager
def disk(faults: Faults, name: str, folder: Path) -> Iterator[Path]:
    """A disk of its own, in memory."""
    folder.mkdir()
    options = "size=64m,mode=755"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        faults.untried(name, f"no right to mount a disk: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path, free: int) -> Path:
    """A file that leaves so many bytes of the disk that `folder` is on."""
    filler = folder / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize - free)
    return filler


def limit_file_size(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def become_nobody() -> None:
    if os.geteuid() == 0:  # whom no permission stops
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def check_refused(
    folder: Path, stage: str, cause: str, before: dict[str, str], prepare: Callable[[], object] = int
) -> bool:
    """Run the stage: it succeeds, or says in one line what it could not write and why, and leaves whole files only."""
    ended = run(folder, stage, prepare)
    if ended.status == 0:
        assert contents(folder, *STAGES[stage].outputs) == before
        return True
    assert ended.status == 1, ended
    told = ended.output.splitlines()[-1]
    assert told.startswith(f"{stage}: error: "), ended.output
    assert cause in told, ended.output
    assert "artifacts/" in told, ended.output
    assert "Traceback" not in ended.output
    for name, digest in contents(folder, *STAGES[stage].outputs).items():
        if digest != before[name]:
            raise DataLostError(f"{name} is there, but not whole")
    return False


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk(faults: Faults, finished: Path, tmp_path: Path, stage: str) -> None:
    """After any number of bytes."""
    with disk(faults, "full disk", tmp_path / "disk") as mount:
        folder, outputs = copytree(finished, mount / "copied"), STAGES[stage].outputs
        before = contents(folder, *outputs)
        draw = random.Random(f"{SEED} {stage}")
        size = sum(
            file.stat().st_size for output in outputs for file in [folder / output, *(folder / output).rglob("*")]
        )
        for number in range(AMOUNTS):
            with faults.tried("full disk"):
                for output in outputs:
                    remove(folder / output)
                filler = fill(mount, draw.randrange(size) if number else 0)
                check_refused(folder, stage, "No space left on device", before)
                filler.unlink()
                check_refused(folder, stage, "", before)


@pytest.mark.parametrize("stage", STAGES)
def test_a_limit_on_the_size_of_files(faults: Faults, copied: Path, stage: str) -> None:
    before, draw = contents(copied, *STAGES[stage].outputs), random.Random(f"{SEED} {stage}")
    largest = max(file.stat().st_size for file in map(copied.joinpath, before))
    for number in range(AMOUNTS):
        with faults.tried("limit on the size of files"):
            for output in STAGES[stage].outputs:
                remove(copied / output)
            limit = partial(limit_file_size, draw.randrange(largest) if number else 0)
            check_refused(copied, stage, "File too large", before, limit)
            assert check_refused(copied, stage, "", before)


@pytest.mark.parametrize("stage", STAGES)
def test_a_read_only_disk(faults: Faults, finished: Path, tmp_path: Path, stage: str) -> None:
    with disk(faults, "read-only disk", tmp_path / "disk") as mount, faults.tried("read-only disk"):
        folder = copytree(finished, mount / "copied")
        before = contents(folder, *OUTPUTS)
        subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
        assert not check_refused(folder, stage, "Read-only file system", before)
        assert contents(folder, *OUTPUTS) == before


@pytest.mark.parametrize("stage", STAGES)
def test_permission_denied(faults: Faults, copied: Path, stage: str) -> None:
    before = contents(copied, *OUTPUTS)
    with faults.tried("permission denied"):
        for folder in [copied, *(path for path in copied.rglob("*") if path.is_dir())]:
            folder.chmod(0o555)
        try:
            assert not check_refused(copied, stage, "Permission denied", before, become_nobody)
        finally:
            for folder in [copied, *(path for path in copied.rglob("*") if path.is_dir())]:
                folder.chmod(0o755)
        assert contents(copied, *OUTPUTS) == before


def test_dvc_on_a_full_disk(faults: Faults, undisturbed: Clone, repeated: Clone, tmp_path: Path) -> None:
    """DVC's own writes too: after a failure `dvc checkout` brings the earlier outputs back, `dvc repro` makes them."""
    draw = random.Random(SEED)
    with disk(faults, "full disk under dvc repro", tmp_path / "disk") as mount:
        repeated.folder = repeated.folder.rename(tmp_path / "before")
        repeated.folder = copytree(tmp_path / "before", mount / "clone", symlinks=True)
        for number in range(10 if LONG else 1):
            with faults.tried("full disk under dvc repro"):
                filler = fill(mount, draw.randrange(1 << 20) if number else 0)
                done = repeated.run("dvc", "repro", "--force", "--single-item", "train", check=False)
                assert done.returncode != 0, done.stdout
                assert "No space left on device" in done.stdout
                assert "Traceback" not in done.stdout
                filler.unlink()
                repeated.run("dvc", "checkout", "--force")
                check_same(repeated, undisturbed)
                done = repeated.run("dvc", "repro")
                check_same(repeated, undisturbed)
