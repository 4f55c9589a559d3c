"""What is refused because it is not what a stage wrote."""

import subprocess
from pathlib import Path

import pytest

from stages.core import sums
from stages.core.files.errors import UserError

FILE, FOLDER = Path("artifacts/model.bin"), Path("artifacts/data")


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in which stage `make` has written a file, and a folder of two files."""
    monkeypatch.chdir(tmp_path)
    (FOLDER / "inner").mkdir(parents=True)
    FILE.write_bytes(b"model")
    (FOLDER / "a").write_bytes(b"first")
    (FOLDER / "inner/b").write_bytes(b"second")
    sums.record("make", FILE, FOLDER)
    sums.verify("make", FILE, FOLDER)
    return tmp_path


def refused(*inputs: Path) -> str:
    with pytest.raises(UserError) as refusal:
        sums.verify("make", *inputs)
    return str(refusal.value)


def test_sha256sum_reads_them(recorded: Path) -> None:
    done = subprocess.run(
        ["sha256sum", "--check", "artifacts/sums/make.sha256"], check=True, stdout=subprocess.PIPE, text=True
    )
    assert done.stdout.splitlines() == [f"artifacts/{name}: OK" for name in ("model.bin", "data/a", "data/inner/b")]


@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize("path", [FILE, FOLDER / "a", FOLDER / "inner/b"], ids=str)
def test_a_flipped_bit(recorded: Path, path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1 << bit
    path.write_bytes(content)
    assert refused(FILE, FOLDER).startswith(f"{path} is not what stage 'make' wrote: its sha256 is ")


def test_a_missing_an_added_and_a_swapped_file(recorded: Path) -> None:
    first, second = FOLDER / "a", FOLDER / "inner/b"
    content = first.read_bytes(), second.read_bytes()
    first.write_bytes(content[1])
    second.write_bytes(content[0])
    assert refused(FOLDER).startswith(f"{first} is not what stage 'make' wrote")
    first.write_bytes(content[0])
    second.unlink()
    assert refused(FOLDER).startswith(f"{second} is missing")
    second.write_bytes(content[1])
    (FOLDER / "c").touch()
    assert refused(FOLDER).startswith(f"{FOLDER / 'c'} is no file that stage 'make' wrote")


def test_a_folder_for_a_file_and_a_file_for_a_folder(recorded: Path) -> None:
    FILE.unlink()
    FILE.mkdir()
    assert refused(FILE).startswith(f"{FILE} is a folder")
    for path in (FOLDER / "a", FOLDER / "inner/b"):
        path.unlink()
    (FOLDER / "inner").rmdir()
    FOLDER.rmdir()
    FOLDER.touch()
    assert refused(FOLDER).startswith(f"{FOLDER / 'a'} is missing")


def test_sums_that_are_missing_or_damaged(recorded: Path) -> None:
    path = sums.sums_of("make")
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        assert refused(FILE).startswith(f"{path} is damaged")
    for damaged in (b"", content[:-1], content + b"\n", b"\xff\xfe  \x00"):
        path.write_bytes(damaged)
        assert refused(FILE).startswith(f"{path} is damaged")
    path.unlink()
    assert refused(FILE).startswith(f"{path} not found: stage 'make' has not run to its end")


def test_a_file_that_its_stage_did_not_record(recorded: Path) -> None:
    sums.record("make", FOLDER)
    assert refused(FILE).startswith(f"{sums.sums_of('make')} does not name {FILE}; ")


def test_the_digest_is_of_everything(recorded: Path) -> None:
    before = sums.digest("make")
    sums.record("make", FILE, FOLDER)
    assert sums.digest("make") == before
    (FOLDER / "inner/b").write_bytes(b"other")
    sums.record("make", FILE, FOLDER)
    assert sums.digest("make") != before


def test_the_digest_of_a_part(recorded: Path) -> None:
    of_folder, of_file = sums.digest("make", FOLDER), sums.digest("make", FILE)
    FILE.write_bytes(b"another model")
    sums.record("make", FILE, FOLDER)
    assert sums.digest("make", FOLDER) == of_folder
    assert sums.digest("make", FILE) != of_file
