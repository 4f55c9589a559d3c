"""Test a folder of pictures from its files to the labels: PyTorch, ONNX Runtime, service and predictions agree."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from ruamel.yaml import YAML

from serving.folder.results import predict_folder
from stages import download, evaluate, export, normalize, parity, report, train
from stages.core.data.splits import read_dataset
from stages.core.deploy.onnx_model import OnnxModel
from stages.core.evaluation.inference import infer
from stages.core.files import layout
from stages.core.files.errors import UserError
from stages.core.files.tables import read_json
from stages.core.nets.checkpoint import load_model
from tests.conftest import write_params
from tests.core.examples.pictures import deep_png, encode
from tests.serving.conftest import Service

FLOWERS = Path("data/flowers")
TOLERANCE = 1e-4  # of a probability
EXIF_6 = Image.Exif()
EXIF_6[0x0112] = 6  # The picture must be turned by 90 degrees to be upright.


def photo(seed: int, kind: int, width: int = 48, height: int = 36) -> Image.Image:
    """Return a smooth picture in colours, of which one plane is the brightest in the pictures of a kind."""
    levels = np.random.default_rng(seed).integers(0, 120, size=(5, 5, 3), dtype=np.uint8)
    levels[..., kind] += 100
    return Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)


def turned(picture: Image.Image) -> bytes:
    """Return a JPEG file whose pixels lie on their side, and whose EXIF tag says so."""
    return encode(picture.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=EXIF_6)


def transparent(picture: Image.Image) -> bytes:
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    return encode(picture)


def deep(picture: Image.Image) -> bytes:
    return deep_png(np.asarray(picture).astype(np.uint16) * 257)


# A file of each kind, by the end of its name; the last two have the suffix of another format.
KINDS: dict[str, Callable[[Image.Image], bytes]] = {
    "plain.png": encode,
    "photo.jpg": partial(encode, format="JPEG", quality=90),
    "turned.jpeg": turned,
    "modern.webp": partial(encode, format="WEBP", quality=90),
    "simple.bmp": partial(encode, format="BMP"),
    "moving.gif": lambda picture: encode(picture, "GIF", save_all=True, append_images=[picture.rotate(90)]),
    "scanned.tif": partial(encode, format="TIFF", compression="tiff_lzw"),
    "printed.jpg": lambda picture: encode(picture.convert("CMYK"), "JPEG", quality=95),
    "palette.png": lambda picture: encode(picture.quantize(16)),
    "transparent.png": transparent,
    "deep.png": deep,
    "grey.png": lambda picture: encode(picture.convert("L")),
    "one bit.png": lambda picture: encode(picture.convert("1")),
    "large.jpg": lambda picture: encode(picture.resize((1000, 400), Image.Resampling.BICUBIC), "JPEG", quality=95),
    "really a webp.png": partial(encode, format="WEBP", quality=90),
    "really a png": encode,
}


def write_flowers(folder: Path, rounds: int = 2) -> None:
    """Write `rounds` pictures of each kind for each of three classes, the last class in a folder below its own."""
    for label, name in enumerate(("rose", "tulip", "daisy/garden 1.5")):
        (folder / name).mkdir(parents=True)
        for number in range(rounds):
            for index, (suffix, make) in enumerate(KINDS.items()):
                seed = (number * 3 + label) * len(KINDS) + index
                (folder / name / f"{number} {suffix}").write_bytes(make(photo(seed, label)))


STAGES = (download, normalize, train, evaluate, export, parity, report)


@pytest.fixture
def folder(tmp_path: Path, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the data set `flowers` in a workspace whose params choose it and a small network."""
    params["dataset"], params["recipe"] = "flowers", "article"
    del params["datasets"]
    write_params(params, tmp_path)
    monkeypatch.chdir(tmp_path)
    write_flowers(FLOWERS)
    return FLOWERS


def state(**settings: Any) -> None:
    """Write what a person wants to fix about the data set."""
    YAML().dump(settings, FLOWERS / "dataset.yaml")


def read_table() -> pl.DataFrame:
    """Return the table of examples after the stages `download` and `normalize`."""
    download.main()
    normalize.main()
    return read_dataset().examples


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="defaults"),
        pytest.param({"resize": "crop", "size": 20}, id="crop", marks=pytest.mark.slow),
        pytest.param({"resize": "stretch", "size": [16, 24], "color": "grey"}, id="grey", marks=pytest.mark.slow),
        pytest.param({"color": "grey", "centre_ink": True, "size": 28}, id="ink", marks=pytest.mark.slow),
    ],
)
def test_everything_that_uses_the_model_agrees_on_every_picture(folder: Path, settings: dict[str, Any]) -> None:
    state(**settings)
    for stage in STAGES:
        stage.main()
    dataset, onnx_model, (model, _) = read_dataset(), OnnxModel(layout.ONNX), load_model()
    named: dict[str, NDArray[np.float32]] = {}
    for split in ("train", "validation", "test"):
        inputs = dataset.read(split).inputs
        logits_NK = infer(model, torch.from_numpy(inputs.copy()), torch.device("cpu"), 16)
        probabilities_NK = logits_NK.softmax(dim=1).numpy()
        np.testing.assert_allclose(onnx_model.run(inputs)[1], probabilities_NK, atol=TOLERANCE)
        files = dataset.examples.filter(split=split)["file"]
        named |= dict(zip(files, probabilities_NK, strict=True))
    assert len(named) == 3 * 2 * len(KINDS)

    predicted = pl.read_parquet(predict_folder(folder, Path("predicted"), layout.ONNX, 16, lambda *_: None).table)
    assert sorted(predicted.filter(pl.col("error").is_null())["file"]) == sorted(named)
    for row in predicted.iter_rows(named=True):
        expected_K = named[row["file"]]
        found_K = [row[f"probability_{name}"] for name in dataset.spec.classes]
        np.testing.assert_allclose(found_K, expected_K, atol=TOLERANCE, err_msg=row["file"])
        assert row["label"] == dataset.spec.classes[int(expected_K.argmax())]

    service = Service(Path.cwd())
    try:
        for name, expected_K in named.items():
            answer = service.client.post("/predict", files={"files": (name, (folder / name).read_bytes())})
            assert answer.status_code == 200, answer.text
            (found,) = answer.json()["predictions"]
            assert found["label"] == dataset.spec.classes[int(expected_K.argmax())]
            assert found["confidence"] == pytest.approx(float(expected_K.max()), abs=TOLERANCE)
    finally:
        service.end()


def test_classes_size_and_scale_follow_from_the_pictures(folder: Path) -> None:
    examples = read_table()
    spec = read_dataset().spec
    assert spec.classes == ["daisy", "rose", "tulip"]
    assert spec.shape == (3, 36, 36)
    assert spec.opening.color == "rgb"
    inputs = np.asarray(read_dataset().read("train").inputs, np.float64) / 255
    np.testing.assert_allclose(spec.mean, inputs.mean(axis=(0, 2, 3)), atol=1e-4)
    np.testing.assert_allclose(spec.std, inputs.std(axis=(0, 2, 3)), atol=1e-4)
    assert examples["problem"].null_count() == len(examples) == 96


def test_orientation_in_some_pictures_only(folder: Path) -> None:
    """Check that a picture whose EXIF data turn it becomes what its upright copy becomes, whatever its split."""
    for number in range(10):
        picture = photo(1000 + number, 1)
        (folder / f"tulip/upright {number}.png").write_bytes(encode(picture))
        (folder / f"tulip/turned {number}.png").write_bytes(
            encode(picture.transpose(Image.Transpose.ROTATE_90), exif=EXIF_6)
        )
    examples = read_table().filter(pl.col("file").str.contains("upright|turned \\d"))
    assert len(examples) == 20
    assert examples["input_sha256"].n_unique() == 10
    assert set(examples.filter(pl.col("file").str.contains("turned"))["height"]) == {36}


def test_an_added_picture_moves_no_other(folder: Path) -> None:
    before = read_table().select("file", "split", "sha256")
    for number in range(30):
        (folder / f"rose/added {number}.png").write_bytes(encode(photo(5000 + number, 0)))
    after = read_table().select("file", "split", "sha256")
    assert len(after) == len(before) + 30
    assert before.join(after, on=["file", "split", "sha256"]).height == len(before)


def test_neighbouring_frames_across_splits_are_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Check that copies shifted by a pixel are found with their files: 10 pictures with 9 copies each."""
    frames = FLOWERS / "tulip"
    for number in range(10):
        large = photo(7000 + number, 1, 66, 66)
        noise = np.random.default_rng(number).integers(-20, 21, size=(66, 66, 3))
        large = Image.fromarray(np.clip(np.asarray(large) + noise, 0, 255).astype(np.uint8))
        for index, (x, y) in enumerate(np.ndindex(3, 3)):
            (frames / f"frame {number} {index}.png").write_bytes(encode(large.crop((x, y, x + 64, y + 64))))
    state(size=64)
    examples = read_table()
    names = examples.select("id", "file")
    found = examples.drop_nulls("alike").join(names, left_on="alike", right_on="id", suffix="_alike")
    found = found.filter(pl.col("file").str.contains("frame"))
    across = examples.filter(pl.col("file").str.contains("frame") & (pl.col("split") != "train"))
    with_training = [
        file
        for file in across["file"]
        if examples.filter(pl.col("file").str.contains(file.rsplit(" ", 1)[0]) & (pl.col("split") == "train")).height
    ]
    assert len(with_training) > 10
    assert set(found["file"]) == set(with_training)
    assert all(file.rsplit(" ", 1)[0] == alike.rsplit(" ", 1)[0] for file, alike in found["file", "file_alike"].rows())
    assert f"{len(examples) - examples['alike'].null_count()} near duplicates across splits" in capsys.readouterr().out


def test_the_same_pixels_under_two_labels_are_counted(folder: Path) -> None:
    picture = photo(9000, 0)
    (folder / "rose/same.png").write_bytes(encode(picture))
    (folder / "tulip/same.bmp").write_bytes(encode(picture, "BMP"))
    read_table()
    assert read_json(layout.DATA_DETAILS)["conflicting_labels"] == 2


def test_damaged_files_up_to_the_limit_become_rows(folder: Path) -> None:
    broken = {
        "truncated.png": (encode(photo(1, 0))[:200], "cannot be read"),
        "empty.jpg": (b"", "is not a picture: it is empty"),
        "page.jpg": (b"<!DOCTYPE html><html>", "is not a picture: it is an HTML page"),
        "pointer.png": (
            b"version https://git-lfs.github.com/spec/v1\n",
            "is not a picture: it is a pointer of Git LFS",
        ),
    }
    for name, (content, _) in broken.items():
        (folder / "rose" / name).write_bytes(content)
    with pytest.raises(UserError, match=r"4 of 100 examples cannot be used, more than `problems` allows \(1\.00%\)"):
        read_table()
    assert not layout.NORMALIZED.exists()
    state(problems=0.05)
    examples = read_table()
    problems = dict(examples.drop_nulls("problem").select("file", "problem").rows())
    assert set(problems) == {f"rose/{name}" for name in broken}
    for name, (_, said) in broken.items():
        assert problems[f"rose/{name}"].startswith(said)
    assert sum(len(read_dataset().read(split).labels) for split in ("train", "validation", "test")) == 96


@pytest.mark.parametrize(
    ("split", "lacks"), [("test", "no example of class 'daisy'"), ("train", "no example of class 'daisy'")]
)
def test_a_given_split_without_a_class_is_named(folder: Path, split: str, lacks: str) -> None:
    """Check that labels never shift: a class that one split lacks ends the stage, with its name and the split's."""
    for name in ("train", "test"):
        for label in ("rose", "tulip", "daisy/garden 1.5"):
            if name == split and label.startswith("daisy"):
                continue
            (folder / name / label).mkdir(parents=True)
            for file in (folder / label).iterdir():
                if file.name.startswith("0") == (name == "train"):
                    (folder / name / label / file.name).write_bytes(file.read_bytes())
    for label in ("rose", "tulip", "daisy"):
        shutil.rmtree(folder / label)
    with pytest.raises(UserError, match=f"{split}: {lacks}"):
        read_table()
    assert not layout.NORMALIZED.exists()
