"""Every artifact, damaged in every way: the stage that reads it refuses it, naming the file."""

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stages.core.files.atomic import remove
from tests.faults.counts import LONG, DataLostError, Faults
from tests.faults.processes import STAGES, contents, run

pytestmark = pytest.mark.slow

FLIPS = 4 if LONG else 2  # bits of a file, one at a time
SEED = 5


def flip(path: Path, draw: random.Random, _other: Path) -> str:
    content = bytearray(path.read_bytes())
    place = draw.randrange(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)
    return f"bit {place} flipped"


def truncate(path: Path, _draw: random.Random, _other: Path) -> str:
    path.write_bytes(path.read_bytes()[:-1])
    return "truncated by a byte"


def empty(path: Path, _draw: random.Random, _other: Path) -> str:
    path.write_bytes(b"")
    return "emptied"


def replace_by_folder(path: Path, _draw: random.Random, _other: Path) -> str:
    path.unlink()
    path.mkdir()
    return "replaced by a folder"


def swap(path: Path, _draw: random.Random, other: Path) -> str:
    shutil.copyfile(other, path)
    return f"swapped with {other}"


def delete(path: Path, _draw: random.Random, _other: Path) -> str:
    path.unlink()
    return "deleted"


DAMAGES: dict[str, list[Callable[[Path, random.Random, Path], str]]] = {
    "a flipped bit": [flip] * FLIPS,
    "truncated by a byte": [truncate],
    "emptied": [empty],
    "replaced by a folder": [replace_by_folder],
    "swapped with another artifact": [swap],
    "deleted": [delete],
}


def readers(path: Path) -> list[str]:
    """The stages that get this file, or a folder that it is in."""
    return [name for name, stage in STAGES.items() if any(path.is_relative_to(given) for given in stage.inputs)]


@contextmanager
def put_back(path: Path) -> Iterator[None]:
    content = path.read_bytes()
    try:
        yield
    finally:
        remove(path)
        path.write_bytes(content)


@pytest.mark.parametrize("maker", STAGES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_artifacts_are_refused(faults: Faults, copied: Path, maker: str, damage: str) -> None:
    draw = random.Random(f"{SEED} {maker} {damage}")
    artifacts = {name: contents(copied, *stage.outputs) for name, stage in STAGES.items()}
    digests = {name: digest for written in artifacts.values() for name, digest in written.items()}
    for path in [Path(name) for name in artifacts[maker] if readers(Path(name))]:
        others = [name for name, digest in digests.items() if digest != digests[str(path)]]
        for harm in DAMAGES[damage]:
            with faults.tried(f"bad bytes: {damage}"), put_back(copied / path):
                case = f"{path}, {harm(copied / path, draw, copied / draw.choice(others))}"
                assert refused(copied, path, maker), f"{case}: no stage refuses it"


def refused(folder: Path, path: Path, maker: str) -> bool:
    """Return whether a stage refuses the file; none that takes it may write anything from it."""
    named = [str(path)]
    if path.name == "SHA256SUMS" or path.suffix == ".sha256":  # The file that it lists may then seem to be wrong.
        named += contents(folder, *STAGES[maker].outputs)
    refusals = 0
    for reader in readers(path):
        before = contents(folder, *STAGES[reader].outputs)
        ended = run(folder, reader)
        if ended.status == 0:
            # it has not read it
            if contents(folder, *STAGES[reader].outputs) != before:
                raise DataLostError(f"stage '{reader}' has made something of it")
            continue
        assert ended.status == 1, (reader, ended)
        assert "Traceback" not in ended.output, ended.output
        assert any(name in ended.output for name in named), ended.output
        assert contents(folder, *STAGES[reader].outputs) == before
        refusals += 1
        if not LONG:
            break
    return refusals > 0
