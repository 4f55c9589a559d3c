"""Keep two processes from doing the same work in the same folder at once."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on `path`, at most until this process ends; its holder may remove the file.

    Raises `BlockingIOError` if another process holds it, unless `wait` is true.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        held = False
        while not held:
            file = stack.enter_context(path.open("w"))
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            with suppress(FileNotFoundError):  # The lock on a file that was removed meanwhile protects nothing.
                held = os.path.samestat(os.fstat(file.fileno()), path.stat())
        yield


def is_main_process() -> bool:
    """Return whether this process has rank 0 among those that torchrun started, or is the only one."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


@contextmanager
def exclusive(stage: str) -> Iterator[None]:
    """Wait until no other process runs this stage in this folder: a `dvc repro` that is killed leaves one behind."""
    path = Path(f".dvc/tmp/stages/{stage}.lock")
    with ExitStack() as stack:
        if is_main_process():
            try:
                stack.enter_context(locked(path))
            except BlockingIOError:
                found_by = f"`pgrep -f stages.{stage}` finds it"
                print(f"{stage}: waiting for another process that runs this stage ({found_by})", flush=True)
                stack.enter_context(locked(path, wait=True))
        yield
