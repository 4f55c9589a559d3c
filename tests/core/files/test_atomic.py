"""An artifact is whole or not there at all."""

import sys
from pathlib import Path

import pytest

from stages.core.files import atomic
from stages.core.files.atomic import replacing
from stages.core.files.errors import UserError


def write(path: Path, kind: str, content: str) -> None:
    if kind == "folder":
        path.mkdir()
        path /= content
    path.write_text(content)


def write_and_raise(path: Path, kind: str, error: type[BaseException]) -> None:
    write(path, kind, "new")
    raise error


def read(path: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in (path.iterdir() if path.is_dir() else [path])}


@pytest.fixture(params=["renameat2", "no renameat2"])
def exchanges(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test with and without a file system that can exchange folders."""
    if request.param == "no renameat2":
        monkeypatch.setattr(atomic, "exchange", lambda *_: False)


@pytest.mark.usefixtures("exchanges")
@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("old", [None, "file", "folder"])
def test_success_replaces(tmp_path: Path, kind: str, old: str | None) -> None:
    path = tmp_path / "some" / "target"
    if old:
        path.parent.mkdir()
        write(path, old, "old")
    with replacing(path) as partial:
        write(partial, kind, "new")
        assert path.exists() == bool(old)
    assert read(path) == ({"new": "new"} if kind == "folder" else {"target": "new"})
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt])
def test_exception_keeps_the_old(tmp_path: Path, kind: str, error: type[BaseException]) -> None:
    path = tmp_path / "target"
    write(path, kind, "old")
    before = read(path)
    with pytest.raises(UserError if error is OSError else error), replacing(path) as partial:
        write_and_raise(partial, kind, error)
    assert read(path) == before
    assert list(tmp_path.iterdir()) == [path]


def test_exception_without_an_old_one(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), replacing(tmp_path / "target") as partial:
        write_and_raise(partial, "folder", RuntimeError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("stale", ["file", "folder"])
@pytest.mark.parametrize("name", ["target.partial", "target.aside.partial"])
def test_what_a_killed_run_left_is_removed(tmp_path: Path, kind: str, stale: str, name: str) -> None:
    path = tmp_path / "target"
    write(tmp_path / name, stale, "stale")
    with replacing(path) as partial:
        assert not partial.exists()
        write(partial, kind, "new")
    assert set(read(path).values()) == {"new"}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("exchanges")
def test_link_is_replaced_and_what_it_points_to_kept(tmp_path: Path) -> None:
    # DVC can be set to link a workspace's folders and files to its cache
    cached, path = tmp_path / "cached", tmp_path / "target"
    write(cached, "folder", "old")
    path.symlink_to(cached)
    with replacing(path) as partial:
        write(partial, "folder", "new")
    assert read(path) == {"new": "new"}
    assert read(cached) == {"old": "old"}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has renameat2")
def test_two_folders_are_exchanged_in_one_step(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    write(one, "folder", "first")
    write(other, "folder", "second")
    assert atomic.exchange(one, other)
    assert [*read(one), *read(other)] == ["second", "first"]
    with pytest.raises(FileNotFoundError, match="missing"):
        atomic.exchange(one, tmp_path / "missing")
