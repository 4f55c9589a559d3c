"""Test what a metrics file says it was made from."""

import subprocess
from pathlib import Path

import torch

from stages.core.machine.provenance import CODE, git_tree, made_from
from tests.conftest import PROJECT


def test_code_is_what_git_calls_the_tree(tmp_path: Path) -> None:
    for name in ("b.py", "a/x.py", "a.py", "a-b.py", "page.html.jinja", "notes.txt", "__pycache__/b.pyc"):
        (tmp_path / "code" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "code" / name).write_text(name)

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=tmp_path, check=True, stdout=subprocess.PIPE, text=True).stdout

    git("init", "--quiet")
    git("add", "*.py", "*.jinja")
    assert git_tree(tmp_path / "code").hex() == git("write-tree", "--prefix=code/").strip()
    (tmp_path / "code/a/x.py").write_text("changed")
    assert git_tree(tmp_path / "code").hex() != git("write-tree", "--prefix=code/").strip()


def test_each_ingredient_shows() -> None:
    first = made_from("1" * 64, {"lr": 0.1})
    assert made_from("1" * 64, {"lr": 0.1}) == first
    assert made_from("2" * 64, {"lr": 0.1}) == first | {"data": "2" * 12}
    changed = made_from("1" * 64, {"lr": 0.2})
    assert changed["settings"] != first["settings"]
    assert changed == first | {"settings": changed["settings"]}
    assert git_tree(CODE).hex().startswith(first["code"])
    assert CODE == PROJECT / "stages"
    assert f"torch {torch.__version__.split('+')[0]}" in first["versions"]
