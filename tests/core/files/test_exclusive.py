"""Test that two processes cannot hold the same lock."""

import threading
from pathlib import Path

import pytest

from stages.core.files.exclusive import is_main_process, locked


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


def test_a_rank_counts_only_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torchrun there is one process, whatever the environment says."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("RANK", "1")
    assert is_main_process()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert not is_main_process()
    monkeypatch.setenv("RANK", "0")
    assert is_main_process()
