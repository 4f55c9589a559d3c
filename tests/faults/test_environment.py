"""Whatever the machine is set to, `dvc repro` from nothing gives the same `dvc.lock` and the same bytes."""

import locale
import os
import subprocess
import tempfile
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from shutil import copytree
from subprocess import PIPE, STDOUT
from typing import NamedTuple

import pytest

from tests.conftest import Clone, tiny_params, write_params
from tests.faults.conftest import LONG, Faults, check_same

NOBODY = 65534


class Setting(NamedTuple):
    env: dict[str, str | None] = {}  # noqa: RUF012  # not changed; None: unset
    folder: str = "clone"
    umask: int = -1
    closed: bool = False  # standard input
    user: int | None = None


ALONE = {
    "another time zone": Setting({"TZ": "Pacific/Kiritimati"}),
    "locale C": Setting({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}),
    "locale zh_CN.UTF-8": Setting({"LC_ALL": "zh_CN.UTF-8"}),
    "locale tr_TR.UTF-8": Setting({"LC_ALL": "tr_TR.UTF-8"}),
    "a path with blanks and non-ASCII letters": Setting(folder="a clone, ünd İıßλ字"),
    "a home that nobody can write to": Setting({"HOME": "/sys"}),
    "no home": Setting({"HOME": None}),
    "umask 077": Setting(umask=0o077),
    "no standard input": Setting(closed=True),
    "another user": Setting({"HOME": "/nonexistent"}, user=NOBODY),
}
TOGETHER = {
    "another time zone, locale C, odd path, no home, umask 077, no standard input": Setting(
        {"TZ": "Pacific/Kiritimati", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "HOME": None},
        folder="a clone, ünd İıßλ字",
        umask=0o077,
        closed=True,
    ),
    "another user": ALONE["another user"],
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
    if setting.user is not None and os.geteuid() != 0:
        faults.untried(fault, "only root can become another user")
    with faults.tried(fault):
        made = copy(undisturbed)
        made.folder = shared / setting.folder
        subprocess.run(["git", "clone", "--quiet", undisturbed.folder, made.folder], check=True)
        write_params(tiny_params(copytree(tiny_idx, shared / "idx")), made.folder)
        if setting.user is not None:
            subprocess.run(["chown", "--recursive", f"{setting.user}:{setting.user}", made.folder], check=True)
        env = {name: value for name, value in {**made.environment({}), **setting.env}.items() if value is not None}
        done = subprocess.run(
            ["sh", "-c", f"exec dvc repro {'<&-' if setting.closed else '</dev/null'}"],
            check=False,
            cwd=made.folder,
            env=env,
            umask=setting.umask,
            user=setting.user,
            group=setting.user,
            extra_groups=None if setting.user is None else [],
            start_new_session=True,
            stdout=PIPE,
            stderr=STDOUT,
            text=True,
            errors="replace",
        )
        assert done.returncode == 0, done.stdout
        check_same(made, undisturbed)
