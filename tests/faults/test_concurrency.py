"""Several runs at once on one clone, and many in a row on one Prefect server."""

import subprocess
from pathlib import Path
from subprocess import PIPE, STDOUT

import pytest
from ruamel.yaml import YAML

from stages.core.files.atomic import remove
from tests.conftest import Clone
from tests.faults.conftest import check_same
from tests.faults.counts import LONG, Faults
from tests.faults.processes import STAGES
from tests.flows.conftest import prefect_env, project  # noqa: F401  # fixtures

pytestmark = pytest.mark.slow

REPRO = ("dvc", "repro")
FLOW = ("python", "-m", "flows.pipeline")
STALE = list(STAGES) if LONG else list(STAGES)[-2:]
ROUNDS = 3 if LONG else 1
RUNS_IN_A_ROW = 100 if LONG else 3
# what a run says that gives way to another
GIVEN_WAY = ("Unable to acquire lock", "is busy, it is being blocked by", "another DVC process is at work")


def forget(clone: Clone, stages: list[str]) -> None:
    """As if these stages had never run."""
    path = clone.folder / "dvc.lock"
    lock = YAML(typ="safe").load(path)
    for stage in stages:
        del lock["stages"][stage]
        for output in STAGES[stage].outputs:
            remove(clone.folder / output)
    YAML().dump(lock, path)
    remove(clone.folder / ".dvc/cache/runs")


@pytest.mark.parametrize("commands", [(REPRO, REPRO), (REPRO, FLOW), (FLOW, FLOW)] if LONG else [(REPRO, FLOW)])
def test_two_at_once(
    faults: Faults,
    undisturbed: Clone,
    repeated: Clone,
    prefect_env: dict[str, str],  # noqa: F811
    commands: tuple[tuple[str, ...], ...],
) -> None:
    name = " and ".join("dvc repro" if command == REPRO else "flow" for command in commands)
    for _ in range(ROUNDS):
        forget(repeated, STALE)
        with faults.tried(f"at once: {name}"):
            env = repeated.environment(prefect_env)
            started = [
                subprocess.Popen(command, cwd=repeated.folder, env=env, stdout=PIPE, stderr=STDOUT, text=True)
                for command in commands
            ]
            for process in started:
                output, _ = process.communicate()
                assert process.returncode == 0 or any(words in output for words in GIVEN_WAY), output
            repeated.run("dvc", "repro")
            check_same(repeated, undisturbed)


def test_flow_runs_in_a_row(
    faults: Faults,
    project: Clone,  # noqa: F811
    prefect_env: dict[str, str],  # noqa: F811
) -> None:
    for number in range(RUNS_IN_A_ROW):
        with faults.tried("flow runs in a row on one Prefect database"):
            if number % 3 == 0:
                Path(project.folder / "b.txt").unlink(missing_ok=True)
            done = project.run(*FLOW, env=prefect_env)
            assert "Finished in state Completed" in done.stdout, done.stdout
            assert "database is locked" not in done.stdout
