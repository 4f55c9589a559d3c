"""How long a stage took, beside its outputs: a time never repeats, so it is no output and nothing depends on it."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from stages.core.artifacts import is_first
from stages.core.sums import digest

TIMES = Path("artifacts/times")


@contextmanager
def timed(stage: str) -> Iterator[None]:
    """Note the seconds from this process's start, imports included, until `stage` has succeeded."""
    yield
    if not is_first():
        return
    seconds = time.time() - psutil.Process().create_time()
    with suppress(OSError):  # the stage's work is done, with or without a note
        TIMES.mkdir(parents=True, exist_ok=True)
        (TIMES / f"{stage}.json").write_text(json.dumps({"seconds": round(seconds, 1), "wrote": digest(stage)}) + "\n")


def read_time(stage: str) -> float | None:
    """Seconds that `stage` took to write what lies there now; None where nobody has noted that."""
    try:
        note = json.loads((TIMES / f"{stage}.json").read_text())
        return float(note["seconds"]) if note["wrote"] == digest(stage) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
