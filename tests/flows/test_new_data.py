"""Test the command that copies a folder of pictures to data/NAME."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows import new_data
from flows.new_data import add_data
from stages import normalize
from stages.core.config.params import load_params
from stages.core.examples import image
from stages.core.files.errors import UserError
from stages.core.files.layout import DATA
from tests.conftest import Clone

MAKE = ("make", "--assume-old=.venv/installed", "new-data")


def draw(path: Path, seed: int) -> None:
    """Write a picture of coloured noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(256, size=(8, 10, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """Return a folder with 20 pictures of roses and 20 of tulips, and with files that programs put there."""
    folder = tmp_path / "my flowers"
    for seed in range(40):
        draw(folder / ("rose", "tulip")[seed % 2] / f"{seed}.png", seed)
    for name in ("__MACOSX/._0.png", "rose/.DS_Store", "tulip/Thumbs.db", ".ipynb_checkpoints/0.png", "rose.dvc"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"of a program")
    return folder


def add(source: Path) -> list[str]:
    return add_data("flowers", source, load_params())


def refused(source: Path, message: str) -> None:
    """Assert that the folder is refused with this message and that nothing is left behind."""
    before = sorted(DATA.iterdir())
    with pytest.raises(UserError, match=message):
        add(source)
    assert sorted(DATA.iterdir()) == before


@pytest.mark.slow
def test_a_new_data_set_is_tracked_and_only_pictures_added_later_are_decoded(
    clone: Clone, flowers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (flowers / "rose/broken.png").write_bytes((flowers / "rose/0.png").read_bytes()[:4])
    (flowers / "dataset.yaml").write_text("problems: 0.1\n")
    output = clone.run(*MAKE, "NAME=flowers", f"FROM={flowers}").stdout
    for line in (
        "layout: a folder for each class",
        "classes: 2, of 41 examples",
        "rose: 21",
        "width: 10 pixels",
        "modes: 40 RGB",
        "rose/broken.png is not a picture: its 4 bytes",
        "next: dvc exp run -S dataset=flowers, then make demo",
    ):
        assert line in output
    home = clone.folder / DATA / "flowers"
    kept = {".gitignore", "dataset.yaml", "rose", "rose.dvc", "tulip", "tulip.dvc"}
    assert {path.name for path in home.iterdir()} == kept
    assert sum(path.is_file() for path in home.glob("*/*")) == 41
    untracked = clone.run("git", "status", "--porcelain", "--untracked-files=all").stdout
    assert {Path(line[3:]).name for line in untracked.splitlines()} == kept - {"rose", "tulip"}

    params = clone.folder / "params.yaml"
    params.write_text(params.read_text().replace("dataset: tiny", "dataset: flowers"))
    clone.run("dvc", "repro", "normalize")
    draw(home / "rose/new.png", 99)
    clone.run("dvc", "add", "data/flowers/rose")
    assert "changed deps" in clone.run("dvc", "status", "download").stdout
    clone.run("dvc", "repro", "download")

    decoded = []

    def open_picture(content: bytes, name: str, *how: object) -> object:
        decoded.append(name)
        return original(content, name, *how)  # type: ignore[arg-type]

    original = image.open_picture
    monkeypatch.setattr(image, "open_picture", open_picture)
    monkeypatch.chdir(clone.folder)
    normalize.main()
    assert decoded == ["rose/new.png"]


def test_pictures_beside_their_table_are_tracked_as_one_folder(clone: Clone, tmp_path: Path) -> None:
    lines = ["file,label,split"]
    for seed in range(new_data.MANY):
        draw(tmp_path / "flat" / f"{seed}.png", seed)
        lines.append(f"{seed}.png,{'ab'[seed % 2]},{'test' if seed % 5 == 0 else 'train'}")
    (tmp_path / "flat/labels.csv").write_text("\n".join(lines))
    output = clone.run(*MAKE, "NAME=flat", f"FROM={tmp_path}/flat").stdout
    assert "layout: labels.csv" in output
    assert "splits: 80 train, 20 test" in output
    assert (clone.folder / "data/flat.dvc").is_file()
    assert not (clone.folder / "data/flat/labels.csv.dvc").exists()


def test_nothing_is_left_if_dvc_fails(clone: Clone, flowers: Path) -> None:
    shutil.rmtree(clone.folder / ".dvc")
    done = clone.run(*MAKE, "NAME=flowers", f"FROM={flowers}", check=False)
    assert done.returncode
    assert "DVC did not add data/flowers, see above" in done.stdout
    assert not (clone.folder / "data/flowers").exists()


@pytest.mark.parametrize("given", [(), ("NAME=flowers",), ("FROM=photos",)], ids=str)
def test_make_says_which_values_it_needs(clone: Clone, given: tuple[str, ...]) -> None:
    done = clone.run(*MAKE, *given, check=False)
    assert done.returncode
    assert "make new-data NAME=flowers FROM=~/flowers" in done.stdout


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../flowers", "a b", "flowers.partial", "-x", "x" * 65])
def test_a_name_must_be_that_of_a_folder(name: str) -> None:
    with pytest.raises(UserError, match="NAME must be at most 64 letters"):
        new_data.check_name(name)


def test_an_existing_data_set_is_not_overwritten(workspace: Path, flowers: Path) -> None:
    (DATA / "flowers").mkdir()
    refused(flowers, "data/flowers exists already; to add pictures, copy them into it, then run `dvc add")
    assert [*(DATA / "flowers").iterdir()] == []


def test_a_folder_that_does_not_exist_and_an_archive_are_refused(workspace: Path, tmp_path: Path) -> None:
    refused(tmp_path / "absent", "absent does not exist")
    (tmp_path / "flowers.zip").touch()
    refused(tmp_path / "flowers.zip", "flowers.zip is not a folder; unpack an archive first")


def test_the_folder_of_the_project_is_refused(workspace: Path) -> None:
    refused(workspace, "holds this project")


def test_a_folder_without_classes_is_refused(workspace: Path, tmp_path: Path) -> None:
    draw(tmp_path / "loose/1.png", 1)
    refused(tmp_path / "loose", "loose holds no data set")
    draw(tmp_path / "one/rose/1.png", 1)
    refused(tmp_path / "one", f"{tmp_path}/one must have at least two classes, found rose")


def test_pictures_none_of_which_can_be_read_are_refused(workspace: Path, tmp_path: Path) -> None:
    for name in ("rose/1.png", "tulip/1.png"):
        (tmp_path / "broken" / name).parent.mkdir(parents=True)
        (tmp_path / "broken" / name).write_bytes(b"")
    refused(tmp_path / "broken", f"{tmp_path}/broken has no example that can be read")


def test_links_to_files_are_copied_and_links_to_folders_refused(
    workspace: Path, flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_data, "track", lambda _: None)
    draw(tmp_path / "elsewhere/1.png", 1)
    (flowers / "rose/linked.png").symlink_to(tmp_path / "elsewhere/1.png")
    assert add(flowers)[-1].endswith(f"whose contents were copied: 1, first {flowers}/rose/linked.png")
    copy = DATA / "flowers/rose/linked.png"
    assert not copy.is_symlink()
    assert copy.read_bytes() == (tmp_path / "elsewhere/1.png").read_bytes()

    shutil.rmtree(DATA / "flowers")
    (flowers / "lily").symlink_to(tmp_path / "elsewhere")
    refused(flowers, "lily is a link to a folder")
    (flowers / "lily").unlink()
    (flowers / "rose/dangling.png").symlink_to("nowhere")
    refused(flowers, "dangling.png cannot be copied: No such file or directory")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_is_left_of_an_interrupted_copy(
    workspace: Path, flowers: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[str] = []

    copyfile = shutil.copyfile

    def copy(source: Path, target: Path) -> None:
        if len(copied) == 10:
            raise error
        copied.append(str(copyfile(source, target)))

    monkeypatch.setattr(shutil, "copyfile", copy)
    before = sorted(DATA.iterdir())
    with pytest.raises((KeyboardInterrupt, UserError)) as raised:
        add(flowers)
    assert isinstance(raised.value, KeyboardInterrupt) or "No space left" in str(raised.value)
    assert len(copied) == 10
    assert sorted(DATA.iterdir()) == before


def test_idx_files_and_given_splits_are_described(
    workspace: Path, tiny_idx: Path, flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_data, "track", lambda _: None)
    lines = add(tiny_idx)
    assert lines[:3] == ["layout: IDX files", "classes: 10, of 400 examples", "  0: 41"]
    assert "splits: 300 train, 100 test" in lines
    shutil.rmtree(DATA / "flowers")
    for split in ("train", "test"):
        shutil.copytree(flowers, tmp_path / "given" / split)
    assert "splits: 40 test, 40 train" in add(tmp_path / "given")
