"""Provide what the tests of faults start from, and the check that nothing was lost."""

import hashlib

import pytest

from tests.conftest import Clone
from tests.faults.counts import FAULTS, DataLostError, Faults
from tests.faults.processes import OUTPUTS, contents


@pytest.fixture(scope="session")
def faults() -> Faults:
    return FAULTS


def check_same(clone: Clone, undisturbed: Clone, *dataset: str) -> None:
    """Check that `dvc.lock` and the bytes in every output are the same.

    The folder `dataset` may differ: its dataset.yaml may name other addresses of the same files.
    """
    locks = [each.read_yaml("dvc.lock") for each in (clone, undisturbed)]
    for stage in (stage for lock in locks for stage in lock["stages"].values()):
        stage["deps"] = [dep for dep in stage["deps"] if dep["path"] not in dataset]
    if locks[0] != locks[1]:
        raise DataLostError(
            clone.run("git", "diff", "--no-index", str(undisturbed.folder / "dvc.lock"), "dvc.lock", check=False).stdout
        )
    assert contents(clone.folder, *OUTPUTS) == contents(undisturbed.folder, *OUTPUTS)
    assert not list(clone.folder.rglob("*.partial"))
    for cached in (clone.folder / ".dvc/cache/files/md5").glob("??/*"):
        if len(cached.name) == 30 and hashlib.md5(cached.read_bytes()).hexdigest() != cached.parent.name + cached.name:
            raise DataLostError(f"{cached} is damaged")
