"""Whatever the machine is set to, `dvc repro` from nothing gives the same `dvc.lock` and the same bytes."""

import locale
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from shutil import copytree
from subprocess import PIPE, STDOUT
from typing import NamedTuple

import pytest
import torch

from stages.core.files import layout
from tests.conftest import Clone, tiny_params, write_params
from tests.faults.conftest import check_same
from tests.faults.counts import LONG, Faults
from tests.faults.processes import contents, run

pytestmark = pytest.mark.slow

NOBODY = "65534"
# the second one is another user in name alone: where the interpreter lies in a home, nobody else can start it
BECOME = (
    ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"],
    ["unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}"],
)


class Setting(NamedTuple):
    env: dict[str, str | None] = {}  # noqa: RUF012  # not changed; None: unset
    folder: str = "clone"
    umask: int = -1
    closed: bool = False  # standard input
    other_user: bool = False


ALONE = {
    "another time zone": Setting({"TZ": "Pacific/Kiritimati"}),
    "locale C": Setting({"LC_ALL": "C"}),
    "locale zh_CN.UTF-8": Setting({"LC_ALL": "zh_CN.UTF-8"}),
    "locale tr_TR.UTF-8": Setting({"LC_ALL": "tr_TR.UTF-8"}),
    "a path with blanks and non-ASCII letters": Setting(folder="a clone, ünd İıßλ字"),
    "a home that nobody can write to": Setting({"HOME": "/sys"}),
    "no home": Setting({"HOME": None}),
    "umask 077": Setting(umask=0o077),
    "no standard input": Setting(closed=True),
    "another user": Setting({"HOME": "/nonexistent"}, other_user=True),
}
TOGETHER = {
    "another time zone, locale C, odd path, no home, umask 077, no standard input": Setting(
        {"TZ": "Pacific/Kiritimati", "LC_ALL": "C", "HOME": None},
        folder="a clone, ünd İıßλ字",
        umask=0o077,
        closed=True,
    ),
}


def installed(name: str) -> bool:
    old = locale.setlocale(locale.LC_ALL)
    try:
        locale.setlocale(locale.LC_ALL, name)
    except locale.Error:
        return False
    finally:
        locale.setlocale(locale.LC_ALL, old)
    return True


def become_other(folder: Path, env: dict[str, str]) -> list[str]:
    """The start of a command that runs as another user, who owns the folder; empty where there is none."""
    for command in BECOME:
        done = subprocess.run(
            [*command, "sh", "-c", "dvc --version"], check=False, capture_output=True, env=env, cwd=folder
        )
        if done.returncode == 0:
            if command[0] == "setpriv":
                subprocess.run(["chown", "--recursive", f"{NOBODY}:{NOBODY}", folder], check=True)
            return command
    return []


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user can come to, other than pytest's."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("name", ALONE if LONG else TOGETHER)
def test_environment(faults: Faults, undisturbed: Clone, tiny_idx: Path, shared: Path, name: str) -> None:
    setting = (ALONE if LONG else TOGETHER)[name]
    fault = f"environment: {name}"
    if (wanted := setting.env.get("LC_ALL")) and not installed(wanted):
        faults.untried(fault, "not installed")
    made = Clone(shared / setting.folder)
    subprocess.run(["git", "clone", "--quiet", undisturbed.folder, made.folder], check=True)
    write_params(tiny_params(copytree(tiny_idx, shared / "idx")), made.folder)
    env = {name: value for name, value in {**made.environment({}), **setting.env}.items() if value is not None}
    become = become_other(made.folder, env) if setting.other_user else []
    if setting.other_user and not become:
        faults.untried(fault, "no right to become another user")
    with faults.tried(fault):
        done = subprocess.run(
            [*become, "sh", "-c", f"exec dvc repro {'<&-' if setting.closed else '</dev/null'}"],
            check=False,
            cwd=made.folder,
            env=env,
            umask=setting.umask,
            start_new_session=True,
            stdout=PIPE,
            stderr=STDOUT,
            text=True,
            errors="replace",
        )
        assert done.returncode == 0, done.stdout
        check_same(made, undisturbed, "data/tiny")


def test_more_threads(faults: Faults, finished: Path, copied: Path) -> None:
    """The number of threads may change the last digits of the sums, so the details record it; nothing else changes."""
    with faults.tried("environment: another number of threads"):
        ended = run(copied, "evaluate", partial(torch.set_num_threads, 3))
        assert ended.status == 0, ended.output
        assert "3 threads" in (copied / layout.DETAILS).read_text()
        assert run(copied, "normalize").status == 0
        assert contents(copied, layout.NORMALIZED) == contents(finished, layout.NORMALIZED)
        assert run(copied, "parity").status == 0
