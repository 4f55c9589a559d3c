"""Kill -9 before, during and after the writes of each stage."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.core.artifacts import remove
from tests.faults.conftest import LONG, DataLostError, Faults
from tests.faults.processes import STAGES, contents, run, start

KILLS = 50 if LONG else 4  # of each stage
SEED = 5


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_stage(faults: Faults, copied: Path, stage: str) -> None:
    """Its outputs are removed before, as DVC does; the moment goes by the clock or by what it has written."""
    draw, outputs = random.Random(f"{SEED} {stage}"), STAGES[stage].outputs
    undisturbed = contents(copied, *outputs)
    started = time.monotonic()
    assert run(copied, stage).status == 0
    took = time.monotonic() - started
    for number in range(KILLS):
        for output in outputs:
            remove(copied / output)
        with faults.tried(f"kill -9: stage {stage}"):
            process = start(copied, stage)
            if number % 2:
                wait_for_writes(process.is_alive, copied, outputs, draw.randint(1, len(outputs)))
            else:
                process.join(draw.uniform(0, took))
            process.kill()
            process.join()
            if not contents(copied, *outputs).items() <= undisturbed.items():
                raise DataLostError(f"kill {number} has left half an output of stage '{stage}'")
            again = run(copied, stage)
            assert again.status == 0, again.output
            assert contents(copied, *outputs) == undisturbed
            assert not list(copied.rglob("*.partial"))
            assert not list(copied.glob("artifacts/checkpoints/*"))


def wait_for_writes(alive: Callable[[], bool], folder: Path, outputs: list[Path], count: int) -> None:
    """Until so many outputs are there or begun, or the process has ended."""

    def begun(output: Path) -> bool:
        return (folder / output).exists() or (folder / f"{output}.partial").exists()

    while alive() and sum(map(begun, outputs)) < count:
        time.sleep(0.001)
