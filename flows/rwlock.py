"""Remove DVC's list of who reads and writes what, where a kill, ctrl-C or a full disk has left it unreadable.

DVC rewrites .dvc/tmp/rwlock in place, and no command of it works while that file cannot be read.
`python -m flows.rwlock` looks after the project in the current folder.
"""

import json
from pathlib import Path

from stages.core.errors import UserError, reported


def is_readable(file: Path) -> bool:
    try:
        json.loads(file.read_bytes())
    except FileNotFoundError:
        return True
    except ValueError:
        return False
    return True


def remove_torn_rwlock(folder: Path) -> None:
    """Remove the list of the project in `folder` if it is unreadable and no DVC process is writing it."""
    file = folder / ".dvc/tmp/rwlock"
    if is_readable(file):
        return
    # imported only here, for that takes half a second of each `make run`
    from dvc.lock import LockError, make_lock  # noqa: PLC0415
    from dvc.repo import Repo  # noqa: PLC0415

    try:
        with Repo(str(folder)) as repo:
            hardlink = repo.config["core"].get("hardlink_lock", False)
            with make_lock(str(file.with_name("rwlock.lock")), tmp_dir=repo.tmp_dir, hardlink_lock=hardlink):
                if not is_readable(file):
                    file.unlink()
                    print(f"removed {file}, which an interrupted DVC process had left half-written")
    except LockError as error:
        raise UserError(f"another DVC process is at work in {folder}: {error}") from error


def main() -> None:
    with reported("rwlock"):
        remove_torn_rwlock(Path())


if __name__ == "__main__":
    main()
