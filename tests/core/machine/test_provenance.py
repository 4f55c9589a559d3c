"""What a metrics file says it was made from."""

import subprocess
from pathlib import Path

import pytest
import torch
from stages.core.provenance import CODE, git_tree  # FIXME

from stages.core.machine.provenance import made_from
from tests.conftest import PROJECT

CPU = torch.device("cpu")


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
    first = made_from("1" * 64, {"lr": 0.1}, CPU)
    assert made_from("1" * 64, {"lr": 0.1}, CPU) == first
    assert made_from("2" * 64, {"lr": 0.1}, CPU) == first | {"data": "2" * 12}
    changed = made_from("1" * 64, {"lr": 0.2}, CPU)
    assert changed["settings"] != first["settings"]
    assert changed == first | {"settings": changed["settings"]}
    assert git_tree(CODE).hex().startswith(first["code"])
    assert CODE == PROJECT / "stages"
    assert f"torch {torch.__version__.split('+')[0]}" in first["versions"]


@pytest.mark.parametrize(("threads", "shown"), [(1, "1 thread"), (3, "3 threads")])
def test_the_number_of_threads_shows(threads: int, shown: str) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert made_from("1" * 64, {}, CPU)["device"].endswith(f", {shown}")
    finally:
        torch.set_num_threads(before)
