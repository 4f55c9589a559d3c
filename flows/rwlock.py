"""Remove DVC's file .dvc/tmp/rwlock if a kill, ctrl-C or a full disk has left it unreadable.

The file lists which DVC processes read and write which paths. DVC rewrites it in place, and none of its commands works
while the file cannot be read. `python -m flows.rwlock` checks the project in the current folder.
"""

import json
import os
from pathlib import Path

import psutil

from stages.core.files.errors import UserError, report_errors


def is_readable(file: Path) -> bool:
    """Return whether DVC can read the file, which need not exist."""
    try:
        json.loads(file.read_bytes())
    except FileNotFoundError:
        return True
    except ValueError:
        return False
    return True


def find_dvc(folder: Path) -> int | None:
    """Return the process ID of another DVC command that is running in `folder`, if there is one."""
    for process in psutil.process_iter(["pid", "cwd", "cmdline"]):
        words = {Path(word).name for word in process.info["cmdline"] or []}
        if process.info["cwd"] == str(folder.resolve()) and "dvc" in words and process.info["pid"] != os.getpid():
            return int(process.info["pid"])
    return None


def remove_torn_rwlock(folder: Path) -> None:
    """Remove the rwlock of the project in `folder` if it is unreadable and no other DVC process is at work there.

    A DVC command that is running a stage still needs its entry in the file, although it only rarely writes the file.
    """
    file = folder / ".dvc/tmp/rwlock"
    if is_readable(file):
        return
    if pid := find_dvc(folder):
        raise UserError(f"{file} is unreadable, and DVC process {pid} is still at work; try again when it has ended")
    # These are imported only here, because importing them would add half a second to `make run`.
    from dvc.lock import LockError, make_lock  # noqa: PLC0415
    from dvc.repo import Repo  # noqa: PLC0415

    try:
        with Repo(str(folder)) as repo:
            hardlink = repo.config["core"].get("hardlink_lock", False)
            with make_lock(str(file.with_name("rwlock.lock")), tmp_dir=repo.tmp_dir, hardlink_lock=hardlink):
                if not is_readable(file):
                    file.unlink()
                    print(f"removed {file}, which an interrupted DVC process left half-written")
    except LockError as error:
        raise UserError(f"another DVC process is at work in {folder}: {error}") from error


def main() -> None:
    with report_errors("rwlock"):
        remove_torn_rwlock(Path())


if __name__ == "__main__":
    main()
