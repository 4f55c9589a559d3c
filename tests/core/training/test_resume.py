"""Only a training run that would give the same result finds the checkpoint of an unfinished one; damage is noticed."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.core.files.exclusive import locked
from stages.core.files.layout import CHECKPOINTS
from stages.core.training import resume
from tests.conftest import PROJECT

INGREDIENTS: dict[str, Any] = {"data": "0" * 64, "recipe": {"epochs": 3}, "seed": 1}
CONTENT: dict[str, Any] = {"state": {"weights": torch.arange(1000.0)}, "rows": [{"epoch": 1, "train_loss": 0.5}]}


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_name_depends_on_all_ingredients() -> None:
    name = resume.fingerprint(**INGREDIENTS)
    assert resume.fingerprint(**INGREDIENTS) == name
    others = [{**INGREDIENTS, "seed": 2}, {**INGREDIENTS, "recipe": {"epochs": 4}}, {**INGREDIENTS, "more": 0}]
    assert len({name, *(resume.fingerprint(**other) for other in others)}) == 4


def test_the_name_depends_on_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = resume.fingerprint(**INGREDIENTS)
    changed = tmp_path / "resume.py"
    changed.write_text(Path(resume.__file__).read_text() + "\n")
    monkeypatch.setattr(resume, "__file__", str(changed))
    assert resume.fingerprint(**INGREDIENTS) != name


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "some" / "training.pt"
    resume.save_checkpoint(CONTENT, path)
    loaded = resume.load_checkpoint(path)
    assert loaded
    assert torch.equal(loaded["state"]["weights"], CONTENT["state"]["weights"])
    assert loaded["rows"] == CONTENT["rows"]
    assert [file.name for file in path.parent.iterdir()] == ["training.pt"]


def test_a_missing_checkpoint_is_not_a_damaged_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert resume.load_checkpoint(tmp_path / "training.pt") is None
    assert capsys.readouterr().out == ""


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage", [flip, lambda content: content[:-1], lambda content: content[:0], lambda content: content[:9]],
    ids=["flipped bit", "truncated", "empty", "short"],
)  # fmt: skip
def test_a_damaged_checkpoint_is_reported_and_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any
) -> None:
    path = tmp_path / "training.pt"
    resume.save_checkpoint(CONTENT, path)
    path.write_bytes(damage(path.read_bytes()))
    assert resume.load_checkpoint(path) is None
    assert capsys.readouterr().out.startswith(f"train: {path} is damaged and ignored")


@pytest.mark.slow
def test_one_process_at_a_time_claims_a_checkpoint() -> None:
    code = "from stages.core.training import resume\nwith resume.claim_checkpoint('key') as path: print(path)"
    command, env = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": str(PROJECT)}
    with resume.claim_checkpoint("key") as path:
        assert path == CHECKPOINTS / "key.pt"
        resume.save_checkpoint(CONTENT, path)
        assert subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout == "None\n"
        assert path.exists()
    assert list(CHECKPOINTS.iterdir()) == []
    assert subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout == f"{path}\n"


def test_the_checkpoint_of_a_run_that_failed_is_kept() -> None:
    def fail() -> None:
        with resume.claim_checkpoint("key") as path:
            assert path
            resume.save_checkpoint(CONTENT, path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    with resume.claim_checkpoint("key") as path:
        assert path
        assert resume.load_checkpoint(path)


def test_old_checkpoints_are_removed_unless_they_are_in_use() -> None:
    week = time.time() - resume.MAX_AGE_S - 1
    for name, age in (("old", week), ("fresh", time.time()), ("held", week)):
        for suffix in (".lock", ".pt", ".pt.partial"):
            path = CHECKPOINTS / f"{name}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            os.utime(path, (age, age))
    with locked(CHECKPOINTS / "held.lock"):
        os.utime(CHECKPOINTS / "held.pt", (week, week))
        resume.remove_old_checkpoints()
        assert {path.name.partition(".")[0] for path in CHECKPOINTS.iterdir()} == {"fresh", "held"}
