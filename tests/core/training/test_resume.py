"""An unfinished training is found by its own kind alone, and a damaged one is no training."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.core import resume
from stages.core.files.exclusive import locked
from tests.conftest import PROJECT

INGREDIENTS: dict[str, Any] = {"data": "0" * 64, "recipe": {"epochs": 3}, "seed": 1}
CONTENT: dict[str, Any] = {"training": {"weights": torch.arange(1000.0)}, "rows": [{"epoch": 1, "train_loss": 0.5}]}


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_name_is_of_all_ingredients() -> None:
    name = resume.fingerprint(**INGREDIENTS)
    assert resume.fingerprint(**INGREDIENTS) == name
    others = [{**INGREDIENTS, "seed": 2}, {**INGREDIENTS, "recipe": {"epochs": 4}}, {**INGREDIENTS, "more": 0}]
    assert len({name, *(resume.fingerprint(**other) for other in others)}) == 4


def test_the_name_is_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = resume.fingerprint(**INGREDIENTS)
    changed = tmp_path / "resume.py"
    changed.write_text(Path(resume.__file__).read_text() + "\n")
    monkeypatch.setattr(resume, "__file__", str(changed))
    assert resume.fingerprint(**INGREDIENTS) != name


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "some" / "training.pt"
    resume.save(CONTENT, path)
    loaded = resume.load(path)
    assert loaded
    assert torch.equal(loaded["training"]["weights"], CONTENT["training"]["weights"])
    assert loaded["rows"] == CONTENT["rows"]
    assert [file.name for file in path.parent.iterdir()] == ["training.pt"]


def test_none_is_no_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert resume.load(tmp_path / "training.pt") is None
    assert capsys.readouterr().out == ""


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage", [flip, lambda content: content[:-1], lambda content: content[:0], lambda content: content[:9]],
    ids=["flipped bit", "truncated", "empty", "short"],
)  # fmt: skip
def test_damage_is_told_and_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any) -> None:
    path = tmp_path / "training.pt"
    resume.save(CONTENT, path)
    path.write_bytes(damage(path.read_bytes()))
    assert resume.load(path) is None
    assert capsys.readouterr().out.startswith(f"train: {path} is damaged and ignored")


@pytest.mark.slow
def test_one_process_at_a_time_claims_a_training() -> None:
    code = "from stages.core import resume\nwith resume.claimed('key') as path: print(path)"
    command, env = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": str(PROJECT)}
    with resume.claimed("key") as path:
        assert path == resume.FOLDER / "key.pt"
        resume.save(CONTENT, path)
        assert subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout == "None\n"
        assert path.exists()
    assert list(resume.FOLDER.iterdir()) == []
    assert subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout == f"{path}\n"


def test_a_training_that_failed_is_kept() -> None:
    def fail() -> None:
        with resume.claimed("key") as path:
            assert path
            resume.save(CONTENT, path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    with resume.claimed("key") as path:
        assert path
        assert resume.load(path)


def test_old_ones_are_forgotten() -> None:
    week = time.time() - resume.KEPT_S - 1
    for name, age in (("old", week), ("fresh", time.time()), ("held", week)):
        for suffix in (".lock", ".pt", ".pt.partial"):
            path = resume.FOLDER / f"{name}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            os.utime(path, (age, age))
    with locked(resume.FOLDER / "held.lock"):
        os.utime(resume.FOLDER / "held.pt", (week, week))
        resume.forget_old()
        assert {path.name.partition(".")[0] for path in resume.FOLDER.iterdir()} == {"fresh", "held"}
