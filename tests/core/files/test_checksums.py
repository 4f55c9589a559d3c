"""Test that whatever is not what a stage wrote is an error, and that a stage's time belongs to what it wrote."""

import json
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.core.files import layout
from stages.core.files.checksums import Outputs
from stages.core.files.errors import UserError
from tests.conftest import PROJECT

FILE, FOLDER = Path("artifacts/model.bin"), Path("artifacts/data")
TIMES = layout.TIMES
MAKE = Outputs("make", FOLDER / "SHA256SUMS", TIMES)


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, in which stage `make` has written a file, and a folder of two files."""
    monkeypatch.chdir(tmp_path)
    (FOLDER / "inner").mkdir(parents=True)
    FILE.write_bytes(b"model")
    (FOLDER / "a").write_bytes(b"first")
    (FOLDER / "inner/b").write_bytes(b"second")
    MAKE.record(FILE, FOLDER)
    MAKE.verify(FILE, FOLDER)
    return tmp_path


def refused(*inputs: Path) -> str:
    with pytest.raises(UserError) as refusal:
        MAKE.verify(*inputs)
    return str(refusal.value)


def test_sha256sum_reads_them(recorded: Path) -> None:
    """They lie in the folder of the outputs, and name the files from there."""
    command = ["sha256sum", "--check", "--strict", MAKE.checksums.name]
    done = subprocess.run(command, check=True, cwd=MAKE.checksums.parent, stdout=subprocess.PIPE, text=True)
    assert done.stdout.splitlines() == [f"{name}: OK" for name in ("../model.bin", "a", "inner/b")]


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
    assert refused(FOLDER).startswith(f"{FOLDER / 'c'} is not a file that stage 'make' wrote")


def test_a_folder_for_a_file_and_a_file_for_the_folder_of_the_list(recorded: Path) -> None:
    FILE.unlink()
    FILE.mkdir()
    assert refused(FILE).startswith(f"{FILE} is a folder")
    for path in (FOLDER / "a", FOLDER / "inner/b"):
        path.unlink()
    (FOLDER / "inner").rmdir()
    MAKE.checksums.unlink()
    FOLDER.rmdir()
    FOLDER.touch()
    assert refused(FOLDER).startswith(f"{MAKE.checksums} not found: stage 'make' has not finished")


def test_a_file_for_a_folder_whose_list_lies_elsewhere(recorded: Path) -> None:
    elsewhere = Outputs("make", Path("artifacts/details/make.sha256"), TIMES)
    elsewhere.record(FOLDER / "inner")
    elsewhere.verify(FOLDER / "inner")
    (FOLDER / "inner/b").unlink()
    (FOLDER / "inner").rmdir()
    (FOLDER / "inner").touch()
    with pytest.raises(UserError, match=f"^{FOLDER}/inner/b is missing"):
        elsewhere.verify(FOLDER / "inner")


def test_checksums_that_are_missing_or_damaged(recorded: Path) -> None:
    path = MAKE.checksums
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        assert refused(FILE).startswith(f"{path} is damaged")
    for damaged in (b"", content[:-1], content + b"\n", b"\xff\xfe  \x00"):
        path.write_bytes(damaged)
        assert refused(FILE).startswith(f"{path} is damaged")
    path.unlink()
    assert refused(FILE).startswith(f"{path} not found: stage 'make' has not finished")


def test_a_file_that_its_stage_did_not_record(recorded: Path) -> None:
    MAKE.record(FOLDER)
    assert refused(FILE).startswith(f"{MAKE.checksums} does not list {FILE}; ")


def list_outputs() -> dict[str, bool]:
    """Return the outputs in dvc.yaml that stages verify, and whether DVC caches each of them."""
    stages = YAML(typ="safe").load(PROJECT / "dvc.yaml")["stages"]
    found: dict[str, bool] = {}
    for stage in stages.values():
        for output in [*stage["outs"], *stage.get("metrics", [])]:
            found |= (
                {path: options.get("cache", True) for path, options in output.items()}
                if isinstance(output, dict)
                else {output: True}
            )
    return {path: cached for path, cached in found.items() if not path.startswith(str(layout.PAGE.parent))}


@pytest.mark.parametrize(("path", "cached"), list_outputs().items())
def test_the_message_says_who_restores_a_file(path: str, cached: bool) -> None:
    assert f"`{'dvc' if cached else 'git'} checkout {path}` restores " in MAKE.remedy(Path(path))


def test_the_digest_is_of_everything(recorded: Path) -> None:
    before = MAKE.digest()
    MAKE.record(FILE, FOLDER)
    assert MAKE.digest() == before
    (FOLDER / "inner/b").write_bytes(b"other")
    MAKE.record(FILE, FOLDER)
    assert MAKE.digest() != before


def test_the_digest_of_a_part(recorded: Path) -> None:
    of_folder, of_file = MAKE.digest(FOLDER), MAKE.digest(FILE)
    FILE.write_bytes(b"another model")
    MAKE.record(FILE, FOLDER)
    assert MAKE.digest(FOLDER) == of_folder
    assert MAKE.digest(FILE) != of_file


def test_the_list_itself_is_not_in_the_list(recorded: Path) -> None:
    assert [*MAKE.read()] == [FILE, FOLDER / "a", FOLDER / "inner/b"]
    MAKE.record(FILE, FOLDER)
    MAKE.verify(FILE, FOLDER)
    assert [*MAKE.read()] == [FILE, FOLDER / "a", FOLDER / "inner/b"]


def test_the_time_is_of_what_lies_there(recorded: Path) -> None:
    assert MAKE.read_time() is not None
    before = MAKE.checksums.read_bytes()
    FILE.write_bytes(b"second")
    Outputs("other", MAKE.checksums, TIMES).record(FILE, FOLDER)
    assert MAKE.read_time() is None
    MAKE.checksums.write_bytes(before)
    assert MAKE.read_time() is not None


def test_a_stage_that_has_not_recorded_anything_has_no_time(recorded: Path) -> None:
    assert Outputs("other", FOLDER / "OTHER", TIMES).read_time() is None
    MAKE.checksums.unlink()
    assert MAKE.read_time() is None


def test_only_the_main_process_notes_the_time(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (TIMES / "make.json").unlink()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("RANK", "1")
    MAKE.record(FILE, FOLDER)
    assert not (TIMES / "make.json").exists()
    monkeypatch.setenv("RANK", "0")
    MAKE.record(FILE, FOLDER)
    assert json.loads((TIMES / "make.json").read_text())["wrote"] == MAKE.digest()


def test_a_time_that_cannot_be_noted_or_read_is_not_an_error(recorded: Path) -> None:
    (TIMES / "make.json").unlink()
    TIMES.rmdir()
    TIMES.write_text("a file in the folder's place")
    MAKE.record(FILE, FOLDER)
    MAKE.verify(FILE, FOLDER)
    assert MAKE.read_time() is None
    TIMES.unlink()
    TIMES.mkdir()
    for content in ("[1", "[1]", "{}", '{"seconds": "x"}', "\xff"):
        (TIMES / "make.json").write_text(content)
        assert MAKE.read_time() is None
