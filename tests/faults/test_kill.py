"""Kill -9 before, during and after the writes of each stage, and of `dvc repro` with and without its stage."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from subprocess import DEVNULL

import psutil
import pytest

from stages.core.files import atomic
from stages.core.files.atomic import remove, replacing
from tests.conftest import Clone
from tests.faults.conftest import check_same
from tests.faults.counts import LONG, DataLostError, Faults
from tests.faults.processes import STAGES, Running, contents, run

pytestmark = pytest.mark.slow

KILLS = 50 if LONG else 2  # of each stage
KILLED_RUNS = 10 if LONG else 1  # of `dvc repro`
KILLED_REPLACEMENTS = 1000 if LONG else 30  # replacements of a folder
FILES = 8  # files in that folder
SEED = 5


def replace_forever(folder: Path, *, exchange: bool) -> None:
    """Replace the folder again and again, each time with one whose files all hold the next number."""
    atomic.flush = lambda *_: None  # Otherwise nearly every kill would hit a flush, not the replacement.
    if not exchange:  # Some file systems cannot exchange folders.
        atomic.exchange = lambda *_: False
    for generation in count():
        with replacing(folder) as partial:
            partial.mkdir()
            for number in range(FILES):
                (partial / str(number)).write_text(str(generation))


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_folder_is_replaced_as_a_whole(faults: Faults, tmp_path: Path, *, exchange: bool) -> None:
    draw, folder = random.Random(SEED), tmp_path / "parent" / "folder"
    for number in range(KILLED_REPLACEMENTS):
        with faults.tried("kill -9 while a folder is replaced"):
            child = os.fork()
            if child == 0:
                try:
                    replace_forever(folder, exchange=exchange)
                finally:
                    os._exit(1)
            while not folder.exists():
                time.sleep(0)
            time.sleep(draw.uniform(0, 0.02))
            os.kill(child, signal.SIGKILL)
            assert os.waitpid(child, 0)[1] == signal.SIGKILL
            files = {file.name: file.read_text() for file in folder.glob("*")}
            whole = len(files) == FILES and len(set(files.values())) == 1
            if not whole and (exchange or folder.exists()):
                raise DataLostError(f"after kill {number} with seed {SEED}, {folder} holds {files}")
    with replacing(folder) as partial:
        partial.mkdir()
    assert list(folder.parent.iterdir()) == [folder], "the leftovers of a killed process are still there"


def started_outputs(folder: Path, stage: str) -> int:
    """How many outputs there are, the unfinished ones counted too."""
    outputs = [folder / output for output in STAGES[stage].outputs]
    return sum(path.exists() + path.with_name(f"{path.name}.partial").exists() for path in outputs)


def check_whole(folder: Path, stage: str, undisturbed: dict[str, str]) -> None:
    """Check that each file is whole or missing, and that a stage that reads a missing one refuses to run."""
    outputs = STAGES[stage].outputs
    found = contents(folder, *outputs)
    if damaged := {name for name, checksum in found.items() if checksum != undisturbed.get(name)}:
        raise DataLostError(f"these are there, but not whole: {damaged}")
    for reader in readers_of(set(undisturbed) - set(found))[:1]:
        ended = run(folder, reader)
        assert ended.status == 1, ended.output
        assert any(str(output) in ended.output for output in outputs), ended.output


def readers_of(files: set[str]) -> list[str]:
    """Return the stages that read at least one of these files."""
    return [
        name
        for name, stage in STAGES.items()
        if any(Path(file).is_relative_to(given) for given in stage.inputs for file in files)
    ]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage(faults: Faults, copied: Path, stage: str) -> None:
    """Without its outputs, as DVC starts it, or on top of them; at a moment by the clock, or by what it has written."""
    draw, outputs = random.Random(f"{SEED} {stage}"), STAGES[stage].outputs
    undisturbed = contents(copied, *outputs)
    began = time.monotonic()
    assert run(copied, stage).status == 0
    took = time.monotonic() - began
    killed = 0
    for number in count():
        if killed == KILLS:
            break
        for output in outputs if number % 2 else []:
            remove(copied / output)
        running = Running(copied, stage)
        if (number + number // 2) % 2 == 0:
            running.process.join(draw.uniform(0, took))
        else:
            there = started_outputs(copied, stage)
            writes = draw.randint(there + 1, max(there + 1, 2 * len(outputs)))
            while running.process.is_alive() and started_outputs(copied, stage) < writes:
                time.sleep(0)
        running.kill()
        if running.process.exitcode != -signal.SIGKILL:
            continue  # it has ended before
        killed += 1
        with faults.tried(f"kill -9 of stage {stage}"):
            check_whole(copied, stage, undisturbed)
            again = run(copied, stage)
            assert again.status == 0, again.output
            assert contents(copied, *outputs) == undisturbed
            assert not list(copied.rglob("*.partial"))
            assert not list(copied.glob("artifacts/checkpoints/*"))


def stage_of(dvc: subprocess.Popen[bytes]) -> psutil.Process | None:
    with suppress(psutil.NoSuchProcess):
        # a shell may lie between
        for each in psutil.Process(dvc.pid).children(recursive=True):
            if each.name().startswith("python"):
                return each
    return None


def kill_both(dvc: subprocess.Popen[bytes], stage: psutil.Process) -> None:
    os.killpg(dvc.pid, signal.SIGKILL)


def kill_dvc(dvc: subprocess.Popen[bytes], stage: psutil.Process) -> None:
    """Its stage stays behind."""
    dvc.kill()


def kill_stage(dvc: subprocess.Popen[bytes], stage: psutil.Process) -> None:
    stage.kill()


@pytest.mark.parametrize("kill", [kill_both, kill_dvc, kill_stage])
def test_dvc_repro(
    faults: Faults, undisturbed: Clone, repeated: Clone, kill: Callable[[subprocess.Popen[bytes], psutil.Process], None]
) -> None:
    """`dvc repro` alone mends it."""
    draw, names = random.Random(f"{SEED} {kill.__name__}"), list(STAGES)
    killed = 0
    while killed < KILLED_RUNS:
        stage, running = draw.choice(names), None
        command = ["dvc", "repro", "--force", "--single-item", stage]
        with subprocess.Popen(
            command,
            cwd=repeated.folder,
            env=repeated.environment({}),
            stdout=DEVNULL,
            stderr=DEVNULL,
            start_new_session=True,
        ) as dvc:
            while dvc.poll() is None and not (running := stage_of(dvc)):
                time.sleep(0.01)
            assert running, f"dvc repro ended, stage {stage} not seen"
            with suppress(psutil.TimeoutExpired):
                running.wait(draw.uniform(0, 3) if killed else 0)
            alive = running.is_running() if kill is kill_stage else dvc.poll() is None
            if alive:
                kill(dvc, running)
        if not alive:
            continue
        killed += 1
        with faults.tried(f"kill -9 of dvc repro: {kill.__name__.replace('_', ' ')}"):
            done = repeated.run("dvc", "repro", check=False)
            assert done.returncode == 0, done.stdout
            check_same(repeated, undisturbed)
        shutil.rmtree(repeated.folder / ".dvc/cache/runs", ignore_errors=True)
