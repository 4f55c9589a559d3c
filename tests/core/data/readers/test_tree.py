"""Test that folders named after classes are listed as people mean them."""

import os
import shutil
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from stages.core.data.raw import list_raw_files
from stages.core.data.readers.layouts import list_files
from stages.core.data.readers.listing import is_hidden, locate, natural, printable
from stages.core.data.readers.tree import read
from stages.core.examples.image import is_example
from stages.core.files.errors import UserError
from tests.core.examples.pictures import draw_colors, encode

PNG = encode(Image.fromarray(draw_colors(9, 6)))


def make(folder: Path, *names: str, content: bytes = PNG) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def listed(folder: Path) -> list[tuple[str, str, str | None]]:
    """Return the file, label and split of each row."""
    return list_files(folder, is_example).select("file", "label", "split").rows()


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    make(tmp_path, "tulip/b.png", "rose/a.jpg", "rose/deep/er/c.webp")
    assert listed(tmp_path) == [
        ("rose/a.jpg", "rose", None),
        ("rose/deep/er/c.webp", "rose", None),
        ("tulip/b.png", "tulip", None),
    ]


@pytest.mark.parametrize("validation", ["validation", "valid", "val", "Val"])
def test_a_folder_for_each_split(tmp_path: Path, validation: str) -> None:
    make(tmp_path, "train/rose/a.png", "Test/rose/x/b.png", f"{validation}/tulip/c.png")
    assert sorted(listed(tmp_path)) == sorted([
        ("train/rose/a.png", "rose", "train"),
        ("Test/rose/x/b.png", "rose", "test"),
        (f"{validation}/tulip/c.png", "tulip", "validation"),
    ])  # fmt: skip


def test_only_a_training_split(tmp_path: Path) -> None:
    make(tmp_path, "train/rose/a.png", "train/tulip/b.png")
    assert [split for *_, split in listed(tmp_path)] == ["train", "train"]


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_a_class_may_be_called_like_a_split(tmp_path: Path, name: str) -> None:
    make(tmp_path, f"{name}/a.png", "boat/b.png", "plane/c.png")
    assert {(label, split) for _, label, split in listed(tmp_path)} == {(name, None), ("boat", None), ("plane", None)}


def test_splits_may_hold_classes_called_like_splits(tmp_path: Path) -> None:
    make(tmp_path, "train/train/a.png", "train/test/b.png", "test/train/c.png", "test/test/d.png")
    assert {(label, split) for _, label, split in listed(tmp_path)} == {
        (label, split) for label in ("train", "test") for split in ("train", "test")
    }


def test_splits_beside_other_folders_are_ambiguous(tmp_path: Path) -> None:
    make(tmp_path, "train/rose/a.png", "test/rose/b.png", "extra/rose/c.png")
    with pytest.raises(UserError, match="has the folders test and train, which are splits, beside 'extra', which is"):
        listed(tmp_path)


def test_no_training_split(tmp_path: Path) -> None:
    make(tmp_path, "validation/rose/a.png")
    with pytest.raises(UserError, match="has a folder 'validation', but no folder 'train'"):
        listed(tmp_path)


def test_one_split_twice(tmp_path: Path) -> None:
    make(tmp_path, "train/rose/a.png", "val/rose/b.png", "valid/rose/c.png")
    with pytest.raises(UserError, match=r"val and .*valid are both the validation split; keep one of them"):
        listed(tmp_path)


@pytest.mark.parametrize(
    "names", [["train/a.png"], ["train/a.png", "test/rose/b.png"], ["train/rose/b.png", "train/a"]]
)
def test_a_split_without_folders_of_classes(tmp_path: Path, names: list[str]) -> None:
    make(tmp_path, *names)
    with pytest.raises(
        UserError, match=r"train/a(\.png)? must lie in a folder named after a class, such as .*train/CLASS"
    ):
        listed(tmp_path)


def test_many_files_without_folders_are_counted(tmp_path: Path) -> None:
    make(tmp_path, "rose/a.png", *(f"{number}.jpg" for number in range(9)))
    with pytest.raises(UserError, match=r": 0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg and 4 more must lie in a folder"):
        listed(tmp_path)


def test_a_file_may_be_named_like_a_split(tmp_path: Path) -> None:
    make(tmp_path, "trains/train station 1.jpg", "boats/test.png", "boats/validation/1.png")
    assert {(label, split) for _, label, split in listed(tmp_path)} == {("trains", None), ("boats", None)}


@pytest.mark.parametrize("empty", ["daisy", "daisy/deep", "train/daisy"])
def test_an_empty_class_is_an_error(tmp_path: Path, empty: str) -> None:
    top = "train/" if empty.startswith("train") else ""
    make(tmp_path, f"{top}rose/a.png", f"{top}tulip/b.png")
    (tmp_path / empty).mkdir(parents=True)
    with pytest.raises(
        UserError, match="daisy holds no file; each class needs examples: add some or remove the folder"
    ):
        listed(tmp_path)


@pytest.mark.parametrize("name", ["README.md", "Thumbs.db", "drawing.txt"])
def test_a_class_without_a_picture_is_an_error(tmp_path: Path, name: str) -> None:
    make(make(tmp_path, "rose/a.png", "tulip/b.png"), f"daisy/{name}", content=b"text")
    with pytest.raises(UserError, match=r"daisy holds no file|no file of class 'daisy' is an example"):
        list_raw_files(tmp_path)


@pytest.mark.parametrize("exists", [True, False])
def test_no_data_set(tmp_path: Path, exists: bool) -> None:
    if exists:
        make(tmp_path, "README.md", content=b"text")
    with pytest.raises(UserError, match=r"holds no data set: it must have a folder for each class, labels.csv or"):
        listed(tmp_path)


JUNK = [".hidden.png", "._a.png", "Thumbs.db", "thumbs.db", ".DS_Store", "desktop.ini", ".ipynb_checkpoints/a.png",
        "__MACOSX/a.png", "__MACOSX/rose/._a.png", "@eaDir/a.png", ".git/a.png"]  # fmt: skip


@pytest.mark.parametrize("where", ["", "rose/", "rose/deep/"])
def test_what_programs_leave_is_no_example(tmp_path: Path, where: str) -> None:
    make(tmp_path, "rose/a.png", "tulip/b.png", *(where + name for name in JUNK))
    assert list_raw_files(tmp_path)["file"].to_list() == ["rose/a.png", "tulip/b.png"]
    assert all(is_hidden(name.split("/")[0]) for name in JUNK)


def test_other_files_may_lie_anywhere(tmp_path: Path) -> None:
    beside = [
        "README.md",
        "LICENSE",
        "LICENSE.pdf",
        "rose.dvc",
        ".gitignore",
        "dataset.yaml",
        "notes.csv",
        "rose/about.txt",
    ]
    make(make(tmp_path, "rose/a.png", "tulip/b"), *beside, content=b"text")
    assert list_raw_files(tmp_path)["file"].to_list() == ["rose/a.png", "tulip/b"]


def test_files_that_are_named_like_pictures_are_problems(tmp_path: Path) -> None:
    make(tmp_path, "rose/a.png", "tulip/b.png")
    make(tmp_path, "rose/page.jpg", content=b"<html>")
    make(tmp_path, "rose/empty.png", content=b"")
    (tmp_path / "rose/gone.png").symlink_to("nowhere.png")
    table = list_raw_files(tmp_path)
    assert dict(table.drop_nulls("problem").select("file", "problem").rows()) == {
        "rose/page.jpg": "is not a picture: it is an HTML page",
        "rose/empty.png": "is not a picture: it is empty",
        "rose/gone.png": "No such file or directory",
    }
    assert table["width"].null_count() == 3


def test_names_in_two_forms_of_unicode_are_one_class(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    make(tmp_path, f"{composed}/a.png", f"{decomposed}/b.png", "rose/c.png")
    table = list_raw_files(tmp_path)
    assert table["label"].value_counts().sort("label").rows() == [(composed, 2), ("rose", 1)]
    assert table["problem"].null_count() == 3


def test_names_with_blanks_and_dots(tmp_path: Path) -> None:
    make(tmp_path, "wild rose/a b.c.png", "v1.0/a.png", " blank /a.png", "#1/a.png")
    assert {label for _, label, _ in listed(tmp_path)} == {"wild rose", "v1.0", " blank ", "#1"}


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    rose = os.fsdecode(b"ros\xe9")
    make(tmp_path, f"{rose}/caf\udce9.png", "tulip/back\\xe9slash.png", "tulip/b.png")
    table = list_raw_files(tmp_path)
    assert table["problem"].null_count() == 3
    assert table["file"].to_list() == ["ros\\xe9/caf\\xe9.png", "tulip/b.png", "tulip/back\\xe9slash.png"]
    assert locate(tmp_path, printable(f"{rose}/caf\udce9.png")).exists()


def test_classes_are_sorted_as_people_count() -> None:
    names = ["10", "9", "b2", "B10", "a", "b1", "", "1.5", "1.10", "009", "\u00b2", "x" + "9" * 5000, "x1"]
    found = sorted(names, key=natural)
    for first, second in (("9", "10"), ("b1", "b2"), ("b2", "B10"), ("1.5", "1.10"), ("x1", "x" + "9" * 5000)):
        assert found.index(first) < found.index(second)


def test_links_are_followed(tmp_path: Path) -> None:
    outside = make(tmp_path / "outside", "daisies/a.png", "single.png")
    folder = make(tmp_path / "flowers", "rose/a.png")
    (folder / "daisy").symlink_to(outside / "daisies")
    (folder / "rose/more").symlink_to(outside / "daisies")
    (folder / "rose/single.png").symlink_to(outside / "single.png")
    (folder / "rose/loop").symlink_to(folder / "rose")
    os.mkfifo(folder / "rose/pipe.png")
    table = list_raw_files(folder)
    assert table["file"].to_list() == ["daisy/a.png", "rose/a.png", "rose/single.png", "rose/more/a.png"]
    assert table["problem"].null_count() == 4


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "rose/a.png", "rose/secret/b.png", "tulip/c.png")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="secret"):
        listed(tmp_path)


def test_300_classes(tmp_path: Path) -> None:
    make(tmp_path, *(f"{number}/a.png" for number in range(300)))
    assert len({label for _, label, _ in listed(tmp_path)}) == 300


@pytest.mark.slow
def test_10_000_classes_of_two_pictures_are_listed(tmp_path: Path) -> None:
    make(tmp_path, *(f"class {number}/{name}.png" for number in range(10_000) for name in "ab"))
    assert len(read(tmp_path, is_example)) == 20_000
    shutil.rmtree(tmp_path)
