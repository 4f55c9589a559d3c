"""Test the predictions for a folder, with a model of MNIST's digits."""

import gzip
import struct
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from serving.folder.results import describe_skipped, predict_folder
from stages.core.data.idx import write_idx
from stages.core.files.errors import UserError
from tests.serving.conftest import (
    COLORS,
    DIGITS,
    PLACES,
    bar,
    colored,
    enlarged,
    write_colors_model,
    write_places_model,
)
from tests.serving.folder.conftest import IMAGES


def predict(given: Path, output: Path, batch_size: int = 16, model: Path = DIGITS) -> pl.DataFrame:
    result = predict_folder(given, output, model, batch_size, lambda *_: None)
    table = pl.read_parquet(result.table)
    assert result.examples == len(table) == len(pl.read_csv(result.table.with_suffix(".csv")))
    return table


def test_every_format_gives_the_same_answers(folder: Path, tmp_path: Path) -> None:
    table = predict(folder, tmp_path / "out")
    assert table["error"].null_count() == len(table) == 200
    answers = table.drop("file", "index")
    for start_row in (40, 80, 120, 160):
        part = answers[start_row : start_row + 40]
        assert part["label"].equals(answers[:40]["label"])
        difference = (part["confidence"] - answers[:40]["confidence"]).abs().max()
        assert isinstance(difference, float)
        assert difference < 1e-5
    assert table["file"][-1] == "fünf 数字/39.png"
    assert table["index"].to_list() == [*range(40)] * 4 + [0] * 40
    threshold = 1 - (table["confidence"] - table.select(pl.max_horizontal("^probability_.*$")).to_series()).abs()
    assert threshold.min() == 1


def test_content_decides_and_not_the_suffix(tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    image = Image.fromarray(IMAGES[0])
    for kind in ("PNG", "WEBP", "GIF", "BMP", "TIFF"):
        image.save(folder / f"{kind}.jpg", kind, **({"lossless": True} if kind == "WEBP" else {}))
        (folder / kind).write_bytes((folder / f"{kind}.jpg").read_bytes())
    write_idx(folder / "idx.png", IMAGES[:1])
    np.save(folder / "array.npy", IMAGES[:1])
    (folder / "array.npy").rename(folder / "array.gif")
    table = predict(folder, tmp_path / "out")
    assert len(table) == 12
    assert table["error"].null_count() == 12
    assert table.drop("file").unique().height == 1


def test_hidden_and_other_files_are_counted_but_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "given"
    names = ["a.png", ".ipynb_checkpoints/a.png", ".hidden.png", "in/__MACOSX/._a.png", "in/._b.png", "in/Thumbs.db"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGES[0]).save(folder / name, "PNG")
    for name in ("1.txt", "2.svg", "in/3.pdf", "in/4.heic"):
        (folder / name).write_text("not an image")
    result = predict_folder(folder, tmp_path / "out", DIGITS, 16, lambda *_: None)
    assert pl.read_parquet(result.table)["file"].to_list() == ["a.png"]
    expected = "4 other files skipped (1.txt, 2.svg, in/3.pdf, ...), 5 hidden files or folders"
    assert expected in describe_skipped(result.survey)
    assert predict_folder(folder / ".hidden.png", tmp_path / "one", DIGITS, 16, lambda *_: None).examples == 1


def test_a_blank_image_becomes_a_row_with_its_error(tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    pixels = IMAGES[:4].copy()
    pixels[2] = 255
    np.save(folder / "array.npy", pixels)
    np.save(folder / "large.npy", pixels.repeat(3, axis=1).repeat(3, axis=2))
    write_idx(folder / "idx", pixels)
    Image.new("L", (300, 200), "white").save(folder / "page.png")
    Image.new("RGBA", (300, 200)).save(folder / "nothing.png")
    for batch_size in (1, 16):
        table = predict(folder, tmp_path / f"out{batch_size}", batch_size)
        blank = {row["file"]: row["error"] for row in table.drop_nulls("error").iter_rows(named=True)}
        assert blank == {
            "array.npy": "image 2 of array.npy is blank; there is nothing to classify",
            "large.npy": "image 2 of large.npy is blank; there is nothing to classify",
            "idx": "image 2 of idx is blank; there is nothing to classify",
            "page.png": "page.png is blank; there is nothing to classify",
            "nothing.png": "nothing.png is blank; there is nothing to classify",
        }
        assert table.drop_nulls("label").height == 9


@pytest.mark.parametrize("light", [False, True])
def test_images_without_ink_are_neither_moved_nor_inverted(tmp_path: Path, light: bool) -> None:
    """Check that the class is the position of the lightest part, whatever the size of the image."""
    folder = tmp_path / "given"
    folder.mkdir()
    images = np.stack([bar(place) + np.uint8(60 * light) for place in range(3)])
    np.save(folder / "small.npy", images)
    np.save(folder / "large.npy", np.stack([*map(enlarged, images)]))
    for place, image in enumerate(images):
        Image.fromarray(image).save(folder / f"small{place}.png")
        Image.fromarray(enlarged(image)).save(folder / f"large{place}.png")
    table = predict(folder, tmp_path / "out", model=write_places_model(tmp_path / "places.onnx"))
    assert table["label"].to_list() == PLACES * 4
    small, large = (table.filter(pl.col("file").str.starts_with(size))["confidence"] for size in ("small", "large"))
    assert small.equals(large)


def test_a_damaged_file_becomes_a_row(folder: Path, tmp_path: Path) -> None:
    png = (folder / "fünf 数字/00.png").read_bytes()
    (folder / "cut.png").write_bytes(png[:-40])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "short-idx3-ubyte").write_bytes((folder / "a-idx3-ubyte").read_bytes()[:-1])
    np.save(folder / "floats.npy", np.zeros((3, 28, 28)))
    np.save(folder / "header.npy", np.zeros((3, 28, 28), np.uint8))
    (folder / "header.npy").write_bytes((folder / "header.npy").read_bytes().replace(b"28)", b"28("))
    np.savez(folder / "archive", images=np.zeros((3, 28, 28), np.uint8))
    (folder / "archive.npz").rename(folder / "archive.npy")
    (folder / "cut.npy").write_bytes((folder / "archive.npy").read_bytes()[:100])
    (folder / "endless.gz").write_bytes(gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 2**32 - 1, 28, 28)))
    packed = gzip.compress(np.random.default_rng(1).bytes(28 * 28 * 40), mtime=0)
    whole = gzip.compress((folder / "a-idx3-ubyte").read_bytes()[:16] + gzip.decompress(packed), mtime=0)
    (folder / "e-cut.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "fünf 数字/ok.txt").write_bytes(b"")
    errors = predict(folder, tmp_path / "out").drop_nulls("error")
    found = {row["file"]: row["error"] for row in errors.iter_rows(named=True)}
    expected = {
        "cut.png": "cannot be read",
        "empty.jpg": "it is empty",
        "short-idx3-ubyte": "has 31375 bytes, but its header says [40, 28, 28]: 31376 bytes",
        "floats.npy": "holds float64",
        "header.npy": "is not a .npy file",
        "archive.npy": "is not a .npy file",
        "cut.npy": "is not a .npy file",
        "endless.gz": "it ends before example 0 of 4,294,967,295",
        "e-cut.gz": "is damaged",
    }
    assert found.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in found[name]
    assert errors.filter(pl.col("file") == "e-cut.gz")["index"].item() == 16
    assert errors.select(pl.col("label", "confidence", "unsure").null_count()).row(0) == (9, 9, 9)


def test_nothing_stale_is_used(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    predict(folder, output)
    write_idx(folder / "a-idx3-ubyte", IMAGES[:7])
    assert len(predict(folder, output)) == 167


@pytest.mark.parametrize("missing", ["folder", "images", "model"])
def test_missing_inputs_are_reported(folder: Path, tmp_path: Path, missing: str) -> None:
    (tmp_path / "empty").mkdir()
    given = {"folder": tmp_path / "none", "images": tmp_path / "empty", "model": folder}[missing]
    model = tmp_path / "none.onnx" if missing == "model" else DIGITS
    with pytest.raises(UserError, match="none.onnx not found" if missing == "model" else "not found|holds no images"):
        predict_folder(given, tmp_path / "out", model, 16, lambda *_: None)


def test_another_folders_predictions_are_kept(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    first = predict(folder, output)
    with pytest.raises(UserError, match=f"{output} holds the predictions of {folder}; --output names another"):
        predict(folder / "a-idx3-ubyte", output)
    assert pl.read_parquet(output / "predictions.parquet").equals(first)


def test_a_model_of_colour_images(tmp_path: Path) -> None:
    """Check that pictures and arrays, in colour and in grey, become the inputs of such a model."""
    folder, model = tmp_path / "given", write_colors_model(tmp_path / "colors.onnx")
    folder.mkdir()
    images = np.stack([colored(plane) for plane in range(3)])
    np.save(folder / "array.npy", images)
    for name, image in zip(COLORS, images, strict=True):
        Image.fromarray(image).save(folder / f"{name}.png")
        Image.fromarray(image).save(folder / f"{name}.jpg", quality=95)
    Image.linear_gradient("L").save(folder / "zgrey.png")
    table = predict(folder, tmp_path / "out", model=model)
    assert table["error"].null_count() == len(table)
    assert table["label"].to_list()[:9] == [*COLORS, "blue", "blue", "green", "green", "red", "red"]
    assert table["confidence"][-1] == pytest.approx(1 / 3)
