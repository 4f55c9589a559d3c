"""Test that Parquet shards in the layout of Hugging Face's `datasets` library are read."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image

from stages.core.data.raw import list_raw_files
from stages.core.data.readers.layouts import list_files, open_contents
from stages.core.data.readers.shards import find_split
from stages.core.examples.image import is_example
from stages.core.files.errors import UserError
from tests.core.examples.pictures import draw_colors, encode

PNG = encode(Image.fromarray(draw_colors(9, 6)))
CLASSES = ["tulip", "rose", "daisy"]


def write(path: Path, frame: pl.DataFrame, names: Any = CLASSES) -> None:
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(path, metadata={"huggingface": json.dumps({"info": {"features": features}})} if names else None)


def shard(
    labels: list[Any], contents: list[bytes | None] | None = None, paths: list[str | None] | None = None
) -> pl.DataFrame:
    contents = contents or [PNG + bytes([index]) for index in range(len(labels))]
    paths = paths or [f"{index}.png" for index in range(len(labels))]
    images = [{"bytes": content, "path": path} for content, path in zip(contents, paths, strict=True)]
    schema = {"image": pl.Struct({"bytes": pl.Binary, "path": pl.String})}
    return pl.DataFrame({"image": images}, schema).with_columns(label=pl.Series(labels))


def listed(folder: Path) -> list[tuple[Any, ...]]:
    return list_files(folder, is_example).select("file", "label", "split", "row").rows()


def test_labels_are_named_by_the_metadata(tmp_path: Path) -> None:
    write(tmp_path / "data/train-00000-of-00001.parquet", shard([2, 0]))
    write(tmp_path / "data/test-00000-of-00001.parquet", shard([1]))
    assert listed(tmp_path) == [
        ("data/test-00000-of-00001.parquet/0.png", "rose", "test", 0),
        ("data/train-00000-of-00001.parquet/0.png", "daisy", "train", 0),
        ("data/train-00000-of-00001.parquet/1.png", "tulip", "train", 1),
    ]


def test_labels_without_metadata_are_texts(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", shard([3, 10]), names=None)
    write(tmp_path / "b.parquet", shard(["caf\u00e9", "cafe\u0301"]), names=None)
    assert [label for _, label, *_ in listed(tmp_path)] == ["3", "10", "caf\u00e9", "caf\u00e9"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("data/validation-0.parquet", "validation"),
        ("cifar10-test.parquet", "test"),
        ("VAL_1.parquet", "validation"),
        ("default/train/0000.parquet", "train"),
        ("train/images/0000.parquet", "train"),
        ("train/test-0.parquet", "test"),
        ("0000.parquet", None),
        ("trainer.parquet", None),
        ("train-test.parquet", None),
    ],
)
def test_splits_follow_from_names(name: str, split: str | None) -> None:
    assert find_split(Path("data") / name, Path("data")) == split


def test_a_shard_without_a_split_beside_others_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", shard([0]))
    write(tmp_path / "unsupervised-0.parquet", shard([0]))
    with pytest.raises(UserError, match=r"unsupervised-0.parquet has a name without a split, unlike others"):
        listed(tmp_path)


def test_columns_of_splits_and_groups(tmp_path: Path) -> None:
    frame = shard([0, 1, 2]).with_columns(split=pl.Series(["val", None, "train"]), group=pl.Series([1, 2, None]))
    write(tmp_path / "0.parquet", frame)
    found = list_files(tmp_path, is_example)
    assert found["split"].to_list() == ["validation", None, "train"]
    assert found["group"].to_list() == ["1", "2", None]


def test_files_without_a_name_of_their_own_are_numbered(tmp_path: Path) -> None:
    write(tmp_path / "0.parquet", shard([0, 1, 2, 0], paths=["image.png", "image.png", None, "other.png"]))
    assert [file for file, *_ in listed(tmp_path)] == [
        "0.parquet#0", "0.parquet#1", "0.parquet#2", "0.parquet/other.png",
    ]  # fmt: skip
    write(tmp_path / "0.parquet", pl.DataFrame({"image": [PNG, PNG], "label": ["a", "b"]}), names=None)
    assert [file for file, *_ in listed(tmp_path)] == ["0.parquet#0", "0.parquet#1"]


def test_contents_are_those_of_the_rows(tmp_path: Path) -> None:
    contents: list[bytes | None] = [b"%d" % number for number in range(3000)]
    write(tmp_path / "train-0.parquet", shard([0] * 3000, contents))
    write(tmp_path / "train-1.parquet", shard([1] * 3000, [b"second " + (content or b"") for content in contents]))
    listing = list_files(tmp_path, is_example)
    assert len(listing) == listing["file"].n_unique() == 6000
    found = [read() for read in open_contents(listing.slice(2990, 20), tmp_path)]
    assert found == [b"%d" % number for number in range(2990, 3000)] + [b"second %d" % number for number in range(10)]


def test_rows_without_a_picture_are_problems(tmp_path: Path) -> None:
    write(tmp_path / "0.parquet", shard([0, 1, 2, 0], [PNG, None, b"<html>", b""], [None, "a", "b", "c"]))
    assert list_raw_files(tmp_path).select("file", "problem").rows() == [
        ("0.parquet#0", None),
        ("0.parquet/a", "has no bytes in its shard"),
        ("0.parquet/b", "is not a picture: it is an HTML page"),
        ("0.parquet/c", "is not a picture: it is empty"),
    ]


def test_headers_are_those_of_the_pictures(tmp_path: Path) -> None:
    write(tmp_path / "0.parquet", shard([0, 1]))
    assert list_raw_files(tmp_path).select("width", "height", "mode").rows() == [(9, 6, "RGB")] * 2


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pl.DataFrame({"img": [PNG], "label": [0]}), "must have the columns image .* and label; found img Binary"),
        (pl.DataFrame({"image": [PNG]}), "must have the columns image"),
        (pl.DataFrame({"image": ["a.png"], "label": [0]}), "must have the columns image"),
        (pl.DataFrame({"image": [{"path": "a.png"}], "label": [0]}), "must have the columns image"),
        (shard([0, None]), r"0.parquet: row 1 has no label"),
        (shard([0, 3]), "found label 3, but its metadata name 3 classes"),
        (shard([0, -1]), "found label -1, but its metadata name 3 classes"),
        (shard([[1], [2]]), "cannot be read"),
        (shard([0]).with_columns(split=pl.lit("dev")), "0.parquet: row 0: split must be one of"),
    ],
)
def test_other_layouts_are_an_error(tmp_path: Path, frame: pl.DataFrame, message: str) -> None:
    write(tmp_path / "0.parquet", frame)
    with pytest.raises(UserError, match=message):
        listed(tmp_path)


@pytest.mark.parametrize("names", [{"0": "tulip"}, "tulip", 7, [None]])
def test_strange_metadata_do_no_harm(tmp_path: Path, names: Any) -> None:
    write(tmp_path / "0.parquet", shard([0, 0]), names=names)
    assert len(listed(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["empty", "truncated", "html", "pages"])
def test_a_damaged_shard_is_an_error(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "train-0.parquet"
    write(path, shard([0, 1] * 50, [PNG * 50] * 100))
    content = path.read_bytes()
    damaged = {
        "empty": b"",
        "truncated": content[:-50],
        "html": b"<html>",
        "pages": b"PAR1" + bytes(900) + content[904:],
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(UserError, match=r"train-0.parquet cannot be read"):
        list_raw_files(tmp_path)
