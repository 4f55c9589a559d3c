"""Test that two processes cannot hold the same lock."""

import threading
from pathlib import Path

import pytest

from stages.core.files.exclusive import locked


def test_a_lock_whose_file_is_removed_is_none(tmp_path: Path) -> None:
    """Who waited for it takes the new file, as one who comes later does."""
    path, entered, leave = tmp_path / "lock", threading.Event(), threading.Event()

    def wait_for_it() -> None:
        with locked(path, wait=True):
            entered.set()
            leave.wait(60)

    waiting = threading.Thread(target=wait_for_it)
    with locked(path):
        waiting.start()
        assert not entered.wait(0.5)
        path.unlink()
    try:
        assert entered.wait(60)
        with pytest.raises(BlockingIOError), locked(path):
            pass
    finally:
        leave.set()
        waiting.join()
