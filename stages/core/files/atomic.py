"""Write files and folders so that readers find them complete or not at all."""

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stages.core.files.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write a file or folder to; unless an exception is raised, it then replaces `path`.

    Readers find either the old version or the new one, complete, even after a kill. Only on a file system that cannot
    exchange folders is there a moment with neither.
    """
    partial, aside = (path.with_name(f"{path.name}.{suffix}") for suffix in ("partial", "aside.partial"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in (partial, aside):  # A run that was killed may have left these.
            remove(leftover)
        yield partial
        for file in [partial, *partial.rglob("*")]:
            flush(file)
        if not os.path.lexists(path) or not (path.is_dir() or partial.is_dir()):
            partial.replace(path)
        elif not exchange(partial, path):
            path.rename(aside)
            partial.rename(path)
            remove(aside)
    except OSError as error:  # The error of a full disk does not name the file.
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # Where nothing can be written, nothing may be removable either.
            remove(partial)


def exchange(one: Path, other: Path) -> bool:
    """Swap two files or folders atomically with Linux's renameat2; return False if that is not supported."""
    at_fdcwd, rename_exchange = -100, 2  # from fcntl.h and stdio.h
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange) == 0:
        return True
    # The file system or the kernel does not support it, or a sandbox or an overlay's lower layer forbids it.
    if (number := ctypes.get_errno()) in {errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP}:
        return False
    raise OSError(number, os.strerror(number), str(other))


def flush(path: Path) -> None:
    """Write a file through to the disk before it gets its final name; after a power cut it might otherwise be empty."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
