"""A note of a stage's time is shown for what that stage wrote, and for nothing else."""

from pathlib import Path

import pytest
from stages.core.sums import record  # FIXME
from stages.core.timing import TIMES, read_time, timed  # FIXME


@pytest.fixture(autouse=True)
def wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stage `make` wrote, in the current folder."""
    monkeypatch.chdir(tmp_path)
    output = Path("output")
    output.write_text("first")
    record("make", output)
    return output


def test_the_time_is_of_what_lies_there(wrote: Path) -> None:
    assert read_time("make") is None
    with timed("make"):
        pass
    assert read_time("make") is not None
    wrote.write_text("second")
    record("make", wrote)
    assert read_time("make") is None


def test_a_stage_that_failed_has_no_time() -> None:
    with pytest.raises(ValueError, match="failed"), timed("make"):
        raise ValueError("failed")
    assert read_time("make") is None


def test_a_time_that_cannot_be_noted_or_read_is_no_error() -> None:
    TIMES.parent.mkdir(exist_ok=True)
    TIMES.write_text("a file in the folder's place")
    with timed("make"):
        pass
    assert read_time("make") is None
    TIMES.unlink()
    TIMES.mkdir()
    (TIMES / "make.json").write_text("[1")
    assert read_time("make") is None
