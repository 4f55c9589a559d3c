"""Test that data sets are read as they were delivered, whatever the number of threads, and in bounded memory."""

import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from PIL import Image
from ruamel.yaml import YAML

from stages.core.data import raw, schemas
from stages.core.data.config import Dataset
from stages.core.data.raw import Joined, Known, Raw, in_chunks, index_classes, list_raw_files, read_files
from stages.core.examples import image
from stages.core.files.errors import UserError
from stages.core.files.tables import validate
from stages.normalize import check_problems
from tests.conftest import PROJECT
from tests.core.examples.pictures import encode

NOTHING = Known({}, (), None)


def settings(**changes: Any) -> Dataset:
    defaults = YAML(typ="safe").load(PROJECT / "params.yaml")["normalize"]
    return Dataset.model_validate({**defaults, "size": 8, "color": "rgb", **changes})


def picture(seed: int, side: int = 12) -> bytes:
    return encode(Image.fromarray(np.random.default_rng(seed).integers(256, size=(side, side, 3), dtype=np.uint8)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a data set of 3 classes with 40 pictures each, of which a few are damaged."""
    for number in range(120):
        path = tmp_path / "flowers" / ("rose", "tulip", "daisy")[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"<html>" if number % 50 == 7 else picture(number))
    return tmp_path / "flowers"


def read(folder: Path, dataset: Dataset | None = None, known: Known = NOTHING) -> Raw:
    scratch = folder.parent / f"scratch {time.monotonic_ns()}.npy"
    return read_files(list_raw_files(folder), folder, dataset or settings(), scratch, known)


def pixels(found: Raw) -> NDArray[np.generic]:
    return found.inputs[np.arange(len(found.inputs))]


def test_the_listing_follows_its_schema(folder: Path) -> None:
    table = list_raw_files(folder)
    validate(table, schemas.files(), folder)
    assert len(table) == 120
    assert table["file"].is_sorted()
    assert table["problem"].drop_nulls().to_list() == ["is not a picture: it is an HTML page"] * 3


def test_each_picture_becomes_the_input_that_the_service_would_make(folder: Path) -> None:
    found = read(folder)
    assert found.classes == ["daisy", "rose", "tulip"]
    for (file, label, problem), input_CHW in zip(
        found.examples.select("file", "label", "problem").iter_rows(), pixels(found), strict=True
    ):
        assert found.classes[label] == file.split("/")[0]
        if problem:
            assert not input_CHW.any()
        else:
            opened = image.open_picture((folder / file).read_bytes(), file, (3, 8, 8), found.opening)
            np.testing.assert_array_equal(input_CHW, opened)


def test_the_number_of_threads_does_not_matter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, table = read(folder), list_raw_files(folder)
    for cpus, chunk in ((1, 1), (1, 1000), (7, 3)):
        monkeypatch.setattr(raw, "CPUS", cpus)
        monkeypatch.setattr(raw, "AHEAD", cpus)
        monkeypatch.setattr(raw, "CHUNK", chunk)
        assert list_raw_files(folder).equals(table)
        found = read(folder)
        assert found.examples.equals(expected.examples)
        np.testing.assert_array_equal(pixels(found), pixels(expected))


def test_shards_give_the_same_inputs_as_files(folder: Path, tmp_path: Path) -> None:
    expected = read(folder)
    shards = tmp_path / "shards"
    shards.mkdir()
    rows = [
        {"image": {"bytes": (folder / file).read_bytes(), "path": file}, "label": file.split("/")[0]}
        for file in expected.examples["file"]
    ]
    for part in range(2):
        pl.DataFrame(rows[part * 50 : (part + 1) * 50 if part == 0 else None]).write_parquet(shards / f"{part}.parquet")
    found = read(shards)
    columns = ["label", "sha256", "problem", "width"]
    assert found.examples.select(columns).equals(expected.examples.select(columns))
    np.testing.assert_array_equal(pixels(found), pixels(expected))


def test_a_file_that_changes_after_it_was_listed_is_a_problem(folder: Path, tmp_path: Path) -> None:
    table = list_raw_files(folder)
    (folder / "rose/0.png").write_bytes(picture(1000))
    (folder / "rose/3.png").unlink()
    found = read_files(table, folder, settings(), tmp_path / "scratch.npy", NOTHING)
    problems = dict(found.examples.drop_nulls("problem").select("file", "problem").rows())
    assert problems["rose/0.png"] == "has changed since stage download read it; `dvc repro` reads it again"
    assert problems["rose/3.png"] == "No such file or directory"
    assert len(problems) == 5


def test_blank_pictures_and_those_with_too_many_pixels_are_problems(folder: Path) -> None:
    (folder / "rose/blank.png").write_bytes(encode(Image.new("RGB", (20, 9), "white")))
    (folder / "rose/large.png").write_bytes(picture(1, 30))
    found = read(folder, settings(max_pixels=400)).examples
    problems = dict(found.drop_nulls("problem").select("file", "problem").rows())
    assert problems["rose/blank.png"] == "is blank; there is nothing to classify"
    assert problems["rose/large.png"] == "has 30 x 30 pixels, more than the limit of 400"


def test_more_problems_than_allowed_are_an_error_that_names_the_first(folder: Path) -> None:
    found = read(folder).examples
    check_problems(found, settings(problems=0.03), folder)
    with pytest.raises(UserError) as error:
        check_problems(found, settings(problems=0.02), folder)
    first, *named = str(error.value).split("\n")
    assert first.endswith("3 of 120 examples cannot be used, more than `problems` allows (2.00%):")
    assert named == [
        f"  {file}: is not a picture: it is an HTML page"
        for file in ("daisy/107.png", "rose/57.png", "tulip/7.png")
    ]  # fmt: skip


def known(folder: Path, **changes: Any) -> Known:
    """Return all inputs of an earlier run as known, but changed, so that it shows whether they are used."""
    before = read(folder, settings(**changes))
    marked = 255 - pixels(before)
    usable = before.examples.with_row_index().filter(pl.col("problem").is_null())
    rows = {checksum: (marked, row) for checksum, row in usable.select("sha256", "index").iter_rows()}
    return Known(rows, before.inputs.shape, before.opening)


def test_only_new_files_are_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = known(folder)
    (folder / "rose/new.png").write_bytes(picture(1000))
    opened: list[str] = []
    open_picture = image.open_picture

    def note(content: bytes, name: str, *others: Any) -> NDArray[np.uint8]:
        opened.append(name)
        return open_picture(content, name, *others)

    expected = read(folder)
    monkeypatch.setattr(image, "open_picture", note)
    found = read(folder, known=earlier)
    assert opened == ["rose/new.png"]
    old = found.examples["problem"].is_null() & (found.examples["file"] != "rose/new.png")
    np.testing.assert_array_equal(pixels(found)[old], 255 - pixels(expected)[old])
    assert found.examples.equals(expected.examples)


@pytest.mark.parametrize("change", [{"size": 9}, {"color": "grey"}, {"resize": "crop"}, {"max_pixels": 10_000}])
def test_known_inputs_are_used_only_with_equal_settings(folder: Path, change: dict[str, Any]) -> None:
    expected = read(folder)
    np.testing.assert_array_equal(pixels(read(folder, known=known(folder, **change))), pixels(expected))


def test_no_readable_picture_is_an_error(tmp_path: Path) -> None:
    for name in ("rose/a.png", "tulip/b.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"has no example that can be read; the first problem: rose/a.png is not a"):
        read(tmp_path)


def labels(*names: str) -> pl.DataFrame:
    return pl.DataFrame({"label": names}, {"label": pl.String})


def test_classes_are_all_labels_in_the_order_of_people_or_as_stated() -> None:
    assert index_classes(labels("10", "9", "10", "1"), settings(), Path("a")) == ["1", "9", "10"]
    stated = settings(classes=["cafe\u0301", "b", "c"])
    assert index_classes(labels("b", "caf\u00e9"), stated, Path("a")) == ["caf\u00e9", "b", "c"]
    many = [str(number) for number in range(300)]
    assert index_classes(labels(*reversed(many)), settings(), Path("a")) == many


@pytest.mark.parametrize(
    ("found", "stated", "message"),
    [
        (["rose"], None, "a must have at least two classes, found rose"),
        ([], None, "a must have at least two classes, found none"),
        (["rose", "iris"], ["rose", "tulip"], "a: dataset.yaml does not list class iris; it lists rose, tulip"),
        (["x", "iris"], [str(number) for number in range(30)], "class iris, x; it lists 0, 1, .*, 19, ..."),
    ],
)
def test_wrong_classes_are_an_error(found: list[str], stated: list[str] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        index_classes(labels(*found), settings(classes=stated), Path("a"))


def test_joined_arrays_are_indexed_as_one() -> None:
    parts = [np.arange(10).reshape(5, 2), np.arange(100, 106).reshape(3, 2), np.zeros((0, 2), int)]
    joined, whole = Joined(parts), np.concatenate(parts)
    assert (len(joined), joined.shape) == (8, (2,))
    for rows in ([0, 7, 3, 3, 5], [], [4, 5]):
        np.testing.assert_array_equal(joined[np.array(rows, int)], whole[rows])
    chunks = [*joined.chunks(np.arange(8)[::-1], 3)]
    assert [len(chunk) for chunk in chunks] == [3, 3, 2]
    np.testing.assert_array_equal(np.concatenate(chunks), whole[::-1])


def frame(rows: int) -> pl.DataFrame:
    return pl.DataFrame({"row": range(rows), "shard": [None] * rows})


def test_only_a_few_chunks_wait_in_memory() -> None:
    size = 1_000_000

    def make(rows: pl.DataFrame) -> Iterator[NDArray[np.uint8]]:
        return iter([np.zeros(size // raw.CHUNK, np.uint8) for _ in range(len(rows))])

    tracemalloc.start()
    for _ in in_chunks(make, frame(400 * raw.CHUNK), ""):
        pass
    highest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert highest < (raw.AHEAD + raw.CPUS + 3) * size * 1.5


def test_results_keep_their_order() -> None:
    def slow_at_first(rows: pl.DataFrame) -> list[int]:
        time.sleep(0.05 if rows["row"][0] == 0 else 0)
        return rows["row"].to_list()

    assert [*in_chunks(slow_at_first, frame(500), "")] == [*range(500)]
    assert [*in_chunks(slow_at_first, frame(0), "")] == []


def test_an_error_ends_all_threads() -> None:
    started = []

    def fail(rows: pl.DataFrame) -> list[int]:
        started.append(rows["row"][0])
        raise UserError("broken")

    before = threading.active_count()
    with pytest.raises(UserError, match="broken"):
        [*in_chunks(fail, frame(100_000), "")]
    assert len(started) < 1000
    assert threading.active_count() == before
