"""Provide what the tests of faults start from, and the check that nothing was lost."""

import hashlib

import pytest

from tests.conftest import Clone
from tests.faults.counts import FAULTS, DataLostError, Faults
from tests.faults.processes import OUTPUTS, contents


@pytest.fixture(scope="session")
def faults() -> Faults:
    return FAULTS


def check_same(clone: Clone, undisturbed: Clone) -> None:
    """The same `dvc.lock` and the same bytes in every output."""
    if clone.read_yaml("dvc.lock") != undisturbed.read_yaml("dvc.lock"):
        raise DataLostError(
            clone.run("git", "diff", "--no-index", str(undisturbed.folder / "dvc.lock"), "dvc.lock", check=False).stdout
        )
    assert contents(clone.folder, *OUTPUTS) == contents(undisturbed.folder, *OUTPUTS)
    assert not list(clone.folder.rglob("*.partial"))
    for cached in (clone.folder / ".dvc/cache/files/md5").glob("??/*"):
        if len(cached.name) == 30 and hashlib.md5(cached.read_bytes()).hexdigest() != cached.parent.name + cached.name:
            raise DataLostError(f"{cached} is damaged")
