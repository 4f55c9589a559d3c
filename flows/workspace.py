"""Provide the folder for a run: the project's own, or a checkout that shares its cache and becomes an experiment."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dvc.repo import Repo

from stages.core.files.errors import UserError
from stages.core.files.exclusive import locked
from stages.core.files.layout import CHECKPOINTS

CHECKOUTS = Path(".dvc/tmp/flows")


def command(folder: Path, *arguments: str) -> str:
    """Run a command and return its output; raise `UserError` with its error output if it fails."""
    done = subprocess.run(arguments, cwd=folder, check=False, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"`{' '.join(arguments)}` failed in {folder}: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()


def dvc(folder: Path, *arguments: str) -> str:
    """Run a DVC command and return its output; raise `UserError` if it fails."""
    return command(folder, sys.executable, "-m", "dvc", *arguments)


@contextmanager
def in_place(project: Path) -> Iterator[Path]:
    """Yield the project's own folder."""
    yield project


@contextmanager
def isolated(project: Path, name: str) -> Iterator[Path]:
    """Yield a checkout of the project's committed revision, with the data from the cache, and remove it afterwards."""
    root = project / CHECKOUTS
    root.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        # Another run must not sweep between the creation and the locking of this run's lock file.
        with locked(root.with_suffix(".lock"), wait=True):
            sweep(project)
            stack.enter_context(locked(root / f"{name}.lock"))
        folder = root / name
        try:
            check_out(project, folder)
            yield folder
        finally:
            remove(project, folder)


def check_out(project: Path, folder: Path) -> None:
    """Create the checkout, with the project's settings, data and unfinished training runs."""
    command(project, "git", "worktree", "add", "--quiet", "--detach", str(folder), "HEAD")
    # All checkouts share the checkpoints, so that a run can resume the training run of one that died.
    checkpoints = project / CHECKPOINTS
    checkpoints.mkdir(parents=True, exist_ok=True)
    (folder / CHECKPOINTS).parent.mkdir(exist_ok=True)
    (folder / CHECKPOINTS).symlink_to(checkpoints)
    # The remote may be configured for this machine only, and the checkout needs it, too.
    if (local := project / ".dvc/config.local").exists():
        shutil.copy(local, folder / ".dvc/config.local")
    with Repo(str(project)) as repo:
        cache = repo.cache.local.path.removesuffix("/files/md5")
    # The path is relative because DVC can write only ASCII characters, and the project may be in any folder.
    dvc(folder, "cache", "dir", "--local", os.path.relpath(cache, folder))
    dvc(folder, "checkout", "--quiet", "--allow-missing")


def save(folder: Path, name: str) -> None:
    """Save the checkout as the experiment `name` of its revision."""
    # DVC records its progress in refs that all checkouts of a repository share.
    with locked(folder.parent.with_suffix(".lock"), wait=True):
        dvc(folder, "exp", "save", "--force", "--name", name)


def has_remote(folder: Path) -> bool:
    """Return whether a DVC remote is configured."""
    return bool(dvc(folder, "remote", "list"))


def push(project: Path, folder: Path, name: str) -> None:
    """Push the checkout's data to DVC's remote and, if git has a remote, the experiment to it."""
    dvc(folder, "push")
    for remote in command(project, "git", "remote").splitlines()[:1]:
        # This runs in the project, because DVC looks for missing commits in a worktree of a shallow clone.
        dvc(project, "exp", "push", "--no-cache", remote, name)


def remove(project: Path, folder: Path) -> None:
    """Remove a checkout and its lock file."""
    if folder.exists():
        shutil.rmtree(folder)
    command(project, "git", "worktree", "prune")
    folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)


def sweep(project: Path) -> None:
    """Remove the checkouts of runs that died, whose locks the kernel has released."""
    for lock in (project / CHECKOUTS).glob("*.lock"):
        try:
            with locked(lock):
                remove(project, lock.with_suffix(""))
        except BlockingIOError:
            continue
