"""Test shards: what the readers find in them is what was in the files."""

from pathlib import Path

import polars as pl
import pytest

from stages.core.data import packing
from stages.core.data.packing import pack
from stages.core.data.readers.layouts import list_files, open_contents
from stages.core.examples import image
from stages.core.files.errors import UserError


def make_files(folder: Path, names: list[str]) -> dict[str, bytes]:
    contents = {name: f"content of {name}".encode() * 20 for name in names}
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return contents


def found(folder: Path) -> dict[str, tuple[str, str | None, str | None, bytes]]:
    listing = list_files(folder, image.is_example)
    return {
        row["file"].split(".parquet/")[-1]: (row["label"], row["split"], row["group"], read())
        for row, read in zip(listing.iter_rows(named=True), open_contents(listing, folder), strict=True)
    }


def test_shards_hold_what_the_tree_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "SHARD_BYTES", 10_000)
    names = [f"{split}/{label}/{number}.png" for split in ("train", "test") for label in "ab" for number in range(50)]
    contents = make_files(tmp_path / "tree", names)
    for target in ("packed", "again"):
        pack(tmp_path / "tree", tmp_path / target)
    assert found(tmp_path / "packed") == {
        name: (name.split("/")[1], name.split("/")[0], None, content) for name, content in contents.items()
    }
    shards = sorted((tmp_path / "packed").iterdir())
    assert len(shards) > 2
    assert all(5_000 < path.stat().st_size < 40_000 for path in shards[:-1])
    for path in shards:  # DVC would store each new version.
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_a_table_keeps_its_groups_and_its_missing_file(tmp_path: Path) -> None:
    contents = make_files(tmp_path / "tree", ["1.png", "2.png"])
    table = "file,label,split,group\n1.png,rose,train,p1\n2.png,tulip,test,\nmissing.png,rose,,\n"
    (tmp_path / "tree/labels.csv").write_text(table)
    pack(tmp_path / "tree", tmp_path / "packed")
    assert found(tmp_path / "packed") == {
        "1.png": ("rose", "train", "p1", contents["1.png"]),
        "2.png": ("tulip", "test", None, contents["2.png"]),
        "missing.png": ("rose", None, None, b""),
    }


def test_shards_are_packed_again(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    images = [{"bytes": b"x", "path": "1.png"}, {"bytes": b"y", "path": "2.png"}]
    table = pl.DataFrame({"image": images, "label": ["a", "b"]})
    table.write_parquet(tmp_path / "tree/train-0.parquet")
    pack(tmp_path / "tree", tmp_path / "packed")
    assert {content for *_, content in found(tmp_path / "packed").values()} == {b"x", b"y"}
    assert list_files(tmp_path / "packed", image.is_example)["split"].to_list() == ["train", "train"]


def test_a_single_class_is_most_likely_a_folder_too_many(tmp_path: Path) -> None:
    make_files(tmp_path / "tree", ["flowers/rose/1.png", "flowers/tulip/2.png"])
    with pytest.raises(UserError, match=r"it has only the class 'flowers'; .* write `folder: flowers`"):
        pack(tmp_path / "tree", tmp_path / "packed")


def test_a_file_larger_than_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MAX_FILE_BYTES", 10)
    make_files(tmp_path / "tree", ["a/1.png", "b/2.png"])
    with pytest.raises(UserError, match=r"a/1.png has 360 bytes, allowed: at most 10 for an example"):
        pack(tmp_path / "tree", tmp_path / "packed")
