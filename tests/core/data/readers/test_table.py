"""Test that tables of files and labels are read as people and spreadsheets write them."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.core.data.raw import list_raw_files
from stages.core.data.readers.layouts import list_files
from stages.core.data.readers.table import read
from stages.core.examples.image import is_example
from stages.core.files.errors import UserError
from tests.core.examples.pictures import draw_colors, encode

PNG = encode(Image.fromarray(draw_colors(9, 6)))


def table(folder: Path, text: str | bytes) -> Path:
    path = folder / "labels.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def rows(folder: Path, text: str | bytes) -> list[tuple[Any, ...]]:
    return read(table(folder, text)).select("file", "label", "split", "group").rows()


PLAIN = [("a.png", "rose", None, None), ("b/c.png", "tulip", None, None)]


@pytest.mark.parametrize(
    "text",
    [
        "file,label\na.png,rose\nb/c.png,tulip\n",
        "file,label\r\na.png,rose\r\nb/c.png,tulip\r\n",
        "file,label\ra.png,rose\rb/c.png,tulip",
        "\ufefffile,label\na.png,rose\nb/c.png,tulip",
        "file;label\na.png;rose\nb/c.png;tulip\n",
        "file\tlabel\na.png\trose\nb/c.png\ttulip\n",
        "FILE,Label\na.png,rose\nb/c.png,tulip\n",
        " file , label \n a.png , rose \n b/c.png , tulip \n",
        '"file","label"\n"a.png","rose"\n"b/c.png","tulip"\n',
        "label,file\nrose,a.png\ntulip,b/c.png\n",
        "file,label,note\na.png,rose,nice\nb/c.png,tulip\n",
        "file,label,\na.png,rose,\nb/c.png,tulip,\n",
        "\n\nfile,label\n\na.png,rose\n  \n,\nb/c.png,tulip\n,,,\n",
        "file,label\n./a.png,rose\nb//./c.png,tulip\n",
        "file,label\na.png,rose\nb\\c.png,tulip\n",
        "file,label\na.png,rose\nx/../a.png,rose\nb/c.png,tulip\n",
        "file,label,split,group\na.png,rose,,\nb/c.png,tulip, ,\n",
    ],
)
def test_a_table_may_be_written_in_many_ways(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").mkdir()
    assert rows(tmp_path, text) == PLAIN


def test_values_may_hold_separators_and_slashes(tmp_path: Path) -> None:
    text = 'file,label\n"a,b.png","red, wild/tame"\nc;d.png,"says ""hi"""\n'
    assert rows(tmp_path, text) == [
        ("a,b.png", "red, wild/tame", None, None),
        ("c;d.png", 'says "hi"', None, None),
    ]


def test_splits_and_groups(tmp_path: Path) -> None:
    text = "file,label,split,group\na.png,rose,Train,p1\nb.png,rose,val,p2\nc.png,rose,valid,\nd.png,rose,TEST,7\n"
    assert rows(tmp_path, text) == [
        ("a.png", "rose", "train", "p1"),
        ("b.png", "rose", "validation", "p2"),
        ("c.png", "rose", "validation", None),
        ("d.png", "rose", "test", "7"),
    ]


def test_labels_in_two_forms_of_unicode_are_one_class(tmp_path: Path) -> None:
    found = rows(tmp_path, "file,label\na.png,caf\u00e9\nb.png,cafe\u0301\n")
    assert {label for _, label, *_ in found} == {"caf\u00e9"}


def test_paths_within_the_folder_may_be_absolute(tmp_path: Path) -> None:
    assert rows(tmp_path, f"file,label\n{tmp_path}/b/c.png,tulip\n") == PLAIN[1:]


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../a.png", "b/../../a.png", "..", "..\\a.png", "C:\\flowers\\a.png", "\\\\host\\a\\b.png"]
)
def test_paths_outside_are_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"labels.csv: line 2: .* must lie in .*, next to the table$"):
        rows(tmp_path, f"file,label\n{name},rose\n")


def test_a_name_with_a_backslash_is_kept_if_it_exists(tmp_path: Path) -> None:
    (tmp_path / "b\\c.png").touch()
    assert rows(tmp_path, "file,label\nb\\c.png,rose\n")[0][0] == "b\\c.png"


def test_missing_and_damaged_files_become_problems(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "notes.txt").write_bytes(b"text")
    (tmp_path / "folder").mkdir()
    table(tmp_path, f"file,label\na.png,x\nnotes.txt,y\ngone.png,y\nfolder,y\n.,x\n{'n' * 300},x\n")
    found = list_raw_files(tmp_path)
    assert dict(found.select("file", "problem").rows()) == {
        "a.png": None,
        "notes.txt": "is not a picture: its 4 bytes are none of PNG, JPEG, WEBP, GIF, BMP, TIFF",
        "gone.png": "No such file or directory",
        "folder": "Is a directory",
        ".": "Is a directory",
        "n" * 300: "File name too long",
    }


def test_the_same_line_twice_is_one_example(tmp_path: Path) -> None:
    assert len(rows(tmp_path, "file,label\na.png,rose\n./a.png,rose\n")) == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a.png,rose,,\na.png,tulip,,", "line 3: a.png is 'tulip', but in line 2 it is 'rose'"),
        ("a.png,rose,test,\n./a.png,rose,,", "line 3: a.png is 'rose', but in line 2 it is 'rose' in split test"),
        (
            "a.png,rose,,p\na.png,rose,,q",
            "line 3: a.png is 'rose' of group 'q', but in line 2 it is 'rose' of group 'p'",
        ),
        ("a.png,rose,dev,", "line 2: split must be one of train, validation, valid, val, test, found 'dev'"),
        (",rose,,", "line 2 has no file"),
        ("a.png,,,", "line 2 has no label"),
        ("a.png", "line 2 has no label"),
        ('"a\nb.png",,,', "line 3 has no label"),
        ("a.png,rose,,,red", 'line 2 has 5 values for 4 columns; a value that contains "," must be quoted'),
        ("a\0.png,rose,,", "line 2: a file name must not contain a null character"),
        ('"a.png,rose,,', "line 2: unexpected end of data"),
        ("", "names no file"),
    ],
)
def test_mistakes_name_the_line(tmp_path: Path, lines: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        rows(tmp_path, f"file,label,split,group\n{lines}\n")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have the columns file and label, and may have split and group; found none"),
        ("\n \n", "found none"),
        ("name,class\na,b\n", "found name, class"),
        ("file,label,File\na,b,c\n", "has more than one column named file"),
        (b"file,label\n\xff\xfe,b\n", "must be UTF-8"),
        ("file,label\na.png,rose\n".encode("utf-16"), "must be UTF-8"),
    ],
)
def test_other_files_are_an_error(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rows(tmp_path, text)


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.binary(max_size=80), st.text(max_size=80).map(lambda text: b"file,label\n" + text.encode())))
def test_any_text_is_a_user_error_or_a_table(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    try:
        found = read(table(folder, text))
        assert found.null_count().select("file", "label").row(0) == (0, 0)
        list_raw_files(folder)
    except UserError as error:
        assert str(error).startswith(str(folder))  # noqa: PT017


def test_a_parquet_table_with_numbers_for_labels(tmp_path: Path) -> None:
    frame = pl.DataFrame({"File": ["a.png", "b.png"], "label": [3, 10], "split": [None, "test"], "group": [1, None]})
    frame.write_parquet(tmp_path / "labels.parquet")
    found = list_files(tmp_path, is_example).select("file", "label", "split", "group").rows()
    assert found == [("b.png", "10", "test", None), ("a.png", "3", None, "1")]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pl.DataFrame({"file": ["a"], "class": ["b"]}), "must have the columns file and label"),
        (pl.DataFrame({"file": ["a", "b"], "label": ["x", None]}), "line 2 has no label"),
        (pl.DataFrame({"file": ["a"], "label": [["x"]]}), "cannot be read"),
    ],
)
def test_mistakes_in_a_parquet_table(tmp_path: Path, frame: pl.DataFrame, message: str) -> None:
    frame.write_parquet(tmp_path / "labels.parquet")
    with pytest.raises(UserError, match=message):
        read(tmp_path / "labels.parquet")


def test_a_damaged_parquet_table(tmp_path: Path) -> None:
    (tmp_path / "labels.parquet").write_bytes(b"PAR1 and more")
    with pytest.raises(UserError, match=r"labels.parquet cannot be read"):
        read(tmp_path / "labels.parquet")


def test_two_tables_are_an_error(tmp_path: Path) -> None:
    table(tmp_path, "file,label\na,b\n")
    (tmp_path / "labels.parquet").touch()
    with pytest.raises(UserError, match=r"must have one table, but it has labels.csv and labels.parquet"):
        list_files(tmp_path, is_example)


def test_the_order_of_the_lines_does_not_matter(tmp_path: Path) -> None:
    lines = ["a.png,rose,train", "b.png,tulip,", "c.png,rose,test"]
    found = []
    for some in (lines, lines[::-1]):
        table(tmp_path, "\n".join(["file,label,split", *some]))
        found.append(list_files(tmp_path, is_example).rows())
    assert found[0] == found[1]
