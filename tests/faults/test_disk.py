"""A full or read-only disk, a limit on the size of files, a lack of permission: one line names path and cause."""

import os
import random
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from shutil import copytree

import pytest

from flows.rwlock import remove_torn_rwlock
from stages.core.files.atomic import remove
from stages.core.files.layout import VALIDATION_METRICS
from tests.conftest import Clone
from tests.faults.conftest import check_same
from tests.faults.counts import LONG, DataLostError, Faults
from tests.faults.processes import OUTPUTS, STAGES, Ended, contents, run

pytestmark = pytest.mark.slow

AMOUNTS = 5 if LONG else 2  # of space that is left
SEED = 5
Contents = dict[str, str]
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


def check_told(ended: Ended, stage: str, *causes: str) -> None:
    """One line says what the stage could not write and why."""
    assert ended.status == 1, ended
    told = [line for line in ended.output.splitlines() if line.startswith(f"{stage}: error: ")]
    assert ended.output.splitlines()[-1:] == told, ended.output
    assert "artifacts/" in told[0]
    assert any(cause in told[0] for cause in causes), told


def check_left(folder: Path, stage: str, undisturbed: Contents) -> None:
    """Whole files or none; and with enough room the stage makes all of them."""
    if not contents(folder, *STAGES[stage].outputs).items() <= undisturbed.items():
        raise DataLostError(f"stage '{stage}' has left half a file")
    ended = run(folder, stage)
    assert ended.status == 0, ended.output
    assert contents(folder, *STAGES[stage].outputs) == undisturbed
    assert not list(folder.rglob("*.partial"))
    for output in STAGES[stage].outputs:
        remove(folder / output)


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk(faults: Faults, finished: Path, tmp_path: Path, stage: str) -> None:
    """After any number of bytes."""
    with disk(faults, "full disk", tmp_path / "disk") as mount:
        folder, draw = copytree(finished, mount / "copied"), random.Random(f"{SEED} {stage}")
        undisturbed = contents(folder, *STAGES[stage].outputs)
        size = sum((folder / name).stat().st_size for name in undisturbed)
        for output in STAGES[stage].outputs:
            remove(folder / output)
        full = 0
        while full < AMOUNTS:
            filler = fill(mount, draw.randrange(size) if full else 0)
            ended = run(folder, stage)
            filler.unlink()
            if full and ended.status == 0:  # there was enough room
                for output in STAGES[stage].outputs:
                    remove(folder / output)
                continue
            full += 1
            with faults.tried("full disk"):
                check_told(ended, stage, "No space left on device")
                check_left(folder, stage, undisturbed)


@pytest.mark.parametrize("stage", STAGES)
def test_a_limit_on_the_size_of_files(faults: Faults, copied: Path, stage: str) -> None:
    undisturbed, draw = contents(copied, *STAGES[stage].outputs), random.Random(f"{SEED} {stage}")
    largest = max((copied / name).stat().st_size for name in undisturbed)
    limited = 0
    while limited < AMOUNTS:
        ended = run(copied, stage, partial(limit_file_size, draw.randrange(largest) if limited else 0))
        if limited and ended.status == 0:  # no file was larger
            continue
        limited += 1
        with faults.tried("limit on the size of files"):
            # SQLite, which DVC uses, has words of its own
            check_told(ended, stage, "File too large", "disk I/O error")
            check_left(copied, stage, undisturbed)


@pytest.mark.parametrize("stage", STAGES)
def test_a_read_only_disk(faults: Faults, finished: Path, copied: Path, stage: str) -> None:
    shutil.rmtree(copied / "artifacts")
    with disk(faults, "read-only disk", copied / "artifacts") as mount, faults.tried("read-only disk"):
        copytree(finished / "artifacts", mount, dirs_exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
        check_told(run(copied, stage), stage, "Read-only file system")
        assert contents(copied, *OUTPUTS) == contents(finished, *OUTPUTS)


@pytest.mark.parametrize("stage", STAGES)
def test_permission_denied(faults: Faults, finished: Path, copied: Path, stage: str) -> None:
    folders = [path for path in [copied, *copied.rglob("*")] if path.is_dir()]
    with faults.tried("permission denied"):
        for folder in folders:
            folder.chmod(0o777 if folder.is_relative_to(copied / ".dvc") else 0o555)
        for lock in (copied / ".dvc").rglob("*.lock"):
            lock.chmod(0o666)
        try:
            check_told(run(copied, stage, become_nobody), stage, "Permission denied")
        finally:
            for folder in folders:
                folder.chmod(0o755)
        assert contents(copied, *OUTPUTS) == contents(finished, *OUTPUTS)


def test_dvc_on_a_full_disk(faults: Faults, undisturbed: Clone, repeated: Clone, tmp_path: Path) -> None:
    """DVC's own writes too: after a failure `dvc checkout` brings the earlier outputs back, `dvc repro` makes them."""
    draw = random.Random(SEED)
    with disk(faults, "full disk under dvc repro", tmp_path / "disk") as mount:
        repeated.folder = repeated.folder.rename(tmp_path / "before")
        repeated.folder = copytree(tmp_path / "before", mount / "clone", symlinks=True)
        for number in range(4 if LONG else 1):
            with faults.tried("full disk under dvc repro"):
                # train and its way into the cache take twice the model, and the checkpoint as much
                filler = fill(mount, draw.randrange(1 << 20) if number else 0)
                done = repeated.run("dvc", "repro", "--force", "--single-item", "train", check=False)
                filler.unlink()
                if done.returncode:
                    causes = ("Unable to read RWLock-file", "No space left on device")
                    assert any(cause in done.stdout for cause in causes), done.stdout
                    assert "Traceback" not in done.stdout
                    repeated.run("dvc", "checkout", "--force")
                    # Metrics are in git, not in DVC's cache.
                    missing = (
                        contents(undisturbed.folder, *OUTPUTS).items() ^ contents(repeated.folder, *OUTPUTS).items()
                    )
                    assert {name for name, _ in missing} <= {str(VALIDATION_METRICS)}
                remove_torn_rwlock(repeated.folder)  # `make run` and the flow do this, too.
                repeated.run("dvc", "repro")
                check_same(repeated, undisturbed)
