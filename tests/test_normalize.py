"""Test the way from IDX files to splits of raw images, and what is an error on the way."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from stages import normalize
from stages.core.config.params import load_params
from stages.core.data.idx import FILES, write_idx
from stages.core.data.splits import read_dataset
from stages.core.files.errors import UserError
from stages.core.files.layout import (
    DATA_DETAILS,
    DATA_METRICS,
    EXAMPLES,
    NORMALIZE,
    NORMALIZED,
    SPEC,
    download_outputs,
)
from tests.conftest import CLASSES, PROJECT, make_images, write_params

RAW = Path("artifacts/raw/tiny")
SIZES = {"train": 247, "validation": 53, "test": 100}
Images = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def write_raw(train: Images | None = None, test: Images | None = None) -> None:
    RAW.mkdir(parents=True, exist_ok=True)
    for split, (images, labels) in {"train": train or make_images(300, 1), "test": test or make_images(100, 2)}.items():
        write_idx(RAW / FILES[split].images, images)
        write_idx(RAW / FILES[split].labels, labels)
    download_outputs("tiny").record(RAW)


def ids_of(split: str) -> list[int]:
    return read_dataset().examples.filter(split=split)["id"].to_list()


def refused() -> str:
    """Return the message that `main` ends with; it must leave nothing behind."""
    with pytest.raises(UserError) as refusal:
        normalize.main()
    assert not NORMALIZED.exists()
    assert not NORMALIZED.with_name("normalized.partial").exists()
    assert not DATA_METRICS.exists()
    return str(refusal.value)


def test_values(workspace: Path) -> None:
    write_raw()
    normalize.main()
    images, labels = (np.concatenate(arrays) for arrays in zip(make_images(300, 1), make_images(100, 2), strict=True))
    dataset = read_dataset()
    assert [len(dataset.read(split).inputs) for split in ("train", "validation", "test")] == [*SIZES.values()]
    for split in SIZES:
        inputs, labels_N = dataset.read(split)
        # An id is the example's place in the training file, then in the test file.
        np.testing.assert_array_equal(inputs, images[ids_of(split), None], strict=True)
        np.testing.assert_array_equal(labels_N, labels[ids_of(split)].astype(np.int64), strict=True)


def test_the_spec_says_what_an_example_is(workspace: Path, params: dict[str, Any]) -> None:
    params["datasets"]["tiny"].update(mean=0.1307, std=[0.3081])
    write_params(params, workspace)
    write_raw()
    normalize.main()
    assert json.loads(SPEC.read_text()) == {
        "kind": "image",
        "shape": [1, 28, 28],
        "dtype": "uint8",
        "classes": CLASSES,
        "mean": [0.1307],
        "std": [0.3081],
        "opening": {"color": "grey", "resize": "fit", "centre_ink": False, "max_pixels": 100_000_000},
    }


def test_everything_that_was_written_is_recorded(workspace: Path) -> None:
    write_raw()
    normalize.main()
    files = [EXAMPLES, SPEC, *(NORMALIZED / f"{split}.npy" for split in ("test", "train", "validation"))]
    assert [*NORMALIZE.read()] == [*files, DATA_METRICS, DATA_DETAILS]
    NORMALIZE.verify(NORMALIZED, DATA_METRICS, DATA_DETAILS)


def test_splits_are_disjoint_and_complete(workspace: Path) -> None:
    write_raw()
    normalize.main()
    train, validation, test = (ids_of(split) for split in ("train", "validation", "test"))
    assert sorted(train + validation) == list(range(300))
    assert test == list(range(300, 400))
    assert train == sorted(train)
    assert validation == sorted(validation)
    assert (np.bincount(read_dataset().read("validation").labels) > 0).all()


def test_table_of_examples(workspace: Path) -> None:
    write_raw()
    normalize.main()
    table = read_dataset().examples
    assert table["id"].n_unique() == table.height == 400
    assert set(table.filter(split="test")["file"]) == {"t10k-images-idx3-ubyte"}
    assert set(table.filter(pl.col("split") != "test")["file"]) == {"train-images-idx3-ubyte"}
    images, labels = make_images(300, 1)
    for row in table.filter(pl.col("id").is_in([0, 57, 299])).iter_rows(named=True):
        image = images[row["id"]]
        assert row["label"] == labels[row["id"]]
        assert row["brightness"] == pytest.approx(image.mean(), rel=1e-5)
        assert row["contrast"] == pytest.approx(image.std(), rel=1e-5)
        assert row["sha256"] == row["input_sha256"] == hashlib.sha256(image.tobytes()).hexdigest()
        assert (row["width"], row["height"], row["mode"], row["problem"]) == (28, 28, "L", None)


def test_split_depends_on_the_seed_alone(workspace: Path, params: dict[str, Any]) -> None:
    write_raw()
    held: list[list[int]] = []
    for seed in (1, 1, 2):
        params["seed"] = seed
        write_params(params, workspace)
        normalize.main()
        held.append(ids_of("validation"))
    assert held[0] == held[1]
    assert held[0] != held[2]


def test_duplicates_are_reported(workspace: Path, params: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    params["datasets"]["tiny"]["allow_duplicates"] = True
    write_params(params, workspace)
    (images, labels), (test_images, test_labels) = make_images(300, 1), make_images(100, 2)
    test_images[3] = images[3]
    test_images[4] = test_images[14]
    write_raw((images, labels), (test_images, test_labels))
    normalize.main()
    assert json.loads(DATA_METRICS.read_text()) == {"images": 400, "duplicates": 4, "problems": 0}
    details = json.loads(DATA_DETAILS.read_text())
    assert set(details.pop("made_from")) == {"data", "settings", "code", "versions"}
    counts = {name: details[name] for name in ("duplicates_across_splits", "duplicates_within_split", "problems")}
    assert counts == {"duplicates_across_splits": 2, "duplicates_within_split": 2, "problems": 0}
    assert {split: details[split] for split in SIZES} == SIZES
    out = capsys.readouterr().out
    assert out.startswith("normalize: 247 train, 53 validation, 100 test of 10 classes as 1x28x28; 0 problems, 2 exact")


def test_given_splits_that_share_examples_are_an_error(workspace: Path) -> None:
    (images, labels), (test_images, test_labels) = make_images(300, 1), make_images(100, 2)
    test_images[3] = images[3]
    write_raw((images, labels), (test_images, test_labels))
    assert refused().split("\n") == [
        "artifacts/raw/tiny: 2 examples are in several splits; remove them from one side, or state"
        " `allow_duplicates: true` in dataset.yaml:",
        "  train-images-idx3-ubyte (train), t10k-images-idx3-ubyte (test)",
    ]


def test_no_duplicates(workspace: Path) -> None:
    write_raw()
    normalize.main()
    assert json.loads(DATA_METRICS.read_text())["duplicates"] == 0


def test_blank_images_are_left_out_up_to_the_limit(workspace: Path, params: dict[str, Any]) -> None:
    images, labels = make_images(100, 2)
    images[[42, 43, 44, 45, 46]] = 7
    write_raw(test=(images, labels))
    assert refused().split("\n") == [
        "artifacts/raw/tiny: 5 of 400 examples cannot be used, more than `problems` allows (1.00%):",
        *["  t10k-images-idx3-ubyte: is blank; there is nothing to classify"] * 5,
    ]
    params["datasets"]["tiny"]["problems"] = 0.0125
    write_params(params, workspace)
    normalize.main()
    examples = read_dataset().examples
    assert examples.drop_nulls("problem")["id"].to_list() == [342, 343, 344, 345, 346]
    assert len(read_dataset().read("test").inputs) == 95
    assert json.loads(DATA_METRICS.read_text()) == {"images": 395, "duplicates": 0, "problems": 5}


@pytest.mark.parametrize("split", ["train", "test"])
def test_label_outside_the_classes(workspace: Path, split: str) -> None:
    images, labels = make_images(100, 2)
    labels[[13, 17]] = [10, 255]
    write_raw(**{split: (images, labels)})
    message = refused()
    assert "artifacts/raw/tiny violates its schema" in message
    assert "column 'label': in_range(0, 9) (2 failing; row 13: 10, row 17: 255)" in message


def test_a_class_share_out_of_bounds_is_reported(workspace: Path, params: dict[str, Any]) -> None:
    params["normalize"]["class_share"] = {"min": 0.03, "max": 0.2}
    params["datasets"]["tiny"]["classes"][3] = "three"
    write_params(params, workspace)
    images, labels = make_images(100, 2)
    labels[labels == 4] = 3
    labels[0] = 4
    labels[1] = 3
    write_raw(test=(images, labels))
    assert refused().split("\n") == [
        "class_share: shares must be from 0.03 to 0.2, artifacts/raw/tiny has:",
        "  test: class 'three' has 0.2100",
        "  test: class '4' has 0.0100",
        "  `class_share: {min: 0.01, max: 0.21}` in its dataset.yaml would allow it",
    ]
    params["normalize"]["class_share"] = {"min": 0.01, "max": 0.21}
    write_params(params, workspace)
    normalize.main()


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_without_any_image(workspace: Path, split: str) -> None:
    images, labels = make_images(180, 1 if split == "train" else 2)
    labels[labels == 4] = 5
    write_raw(**{split: (images, labels)})
    lacking = ["train", "validation"] if split == "train" else ["test"]
    assert refused().split("\n") == [
        "artifacts/raw/tiny: each split needs an example of each class, found:",
        *(f"  {name}: no example of class '4'" for name in lacking),
    ]


def test_classes_of_one_image_cannot_be_split(workspace: Path) -> None:
    write_raw(train=make_images(10, 1))
    assert refused() == (
        "artifacts/raw/tiny: each class needs 2 different examples or groups, one in each of train, validation, but"
        " class '0' has 1, '1' has 1, '2' has 1, '3' has 1, '4' has 1 and 5 more classes; add examples to these classes"
        " or remove them"
    )


def test_too_few_examples(workspace: Path) -> None:
    write_raw(train=make_images(10, 1), test=make_images(9, 2))
    assert refused() == "artifacts/raw/tiny has 19 examples, at least 20 are needed; add more"


def test_the_default_settings_suit_a_small_and_uneven_data_set(workspace: Path, params: dict[str, Any]) -> None:
    params["normalize"] = load_params(PROJECT / "params.yaml").normalize.model_dump()
    params["datasets"]["tiny"] |= {"classes": ["cat", "dog", "owl"]}
    write_params(params, workspace)
    labels = np.array([0] * 420 + [1] * 120 + [2] * 60, np.uint8)
    write_raw((make_images(600, 1)[0], labels), (make_images(100, 2)[0], labels[::6]))
    normalize.main()
    assert (np.bincount(read_dataset().read("validation").labels) > [40, 10, 3]).all()


def test_images_and_labels_that_do_not_match(workspace: Path) -> None:
    images, labels = make_images(100, 2)
    write_raw(test=(images, labels[:-1]))
    message = refused()
    assert f"{RAW / FILES['test'].images} has 100 images, {RAW / FILES['test'].labels} has 99 labels" in message


def test_training_and_test_images_of_different_shapes(workspace: Path) -> None:
    images, labels = make_images(100, 2)
    write_raw(test=(images[:, :, 1:], labels))
    assert refused() == f"{RAW}: training images have the shape (1, 28, 28), test images (1, 28, 27)"


def test_raw_files_that_the_download_did_not_write(workspace: Path) -> None:
    write_raw()
    path = RAW / FILES["test"].images
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert refused().startswith(f"{path} is not what stage 'download' wrote")


def test_an_error_keeps_the_splits_of_an_earlier_run(workspace: Path) -> None:
    write_raw()
    normalize.main()
    before = {path: path.read_bytes() for path in NORMALIZED.iterdir()}
    images, labels = make_images(100, 5)
    images[:10] = 0
    write_raw(test=(images, labels))
    with pytest.raises(UserError, match="10 of 400 examples cannot be used"):
        normalize.main()
    assert {path: path.read_bytes() for path in NORMALIZED.iterdir()} == before
    NORMALIZE.verify(NORMALIZED, DATA_METRICS, DATA_DETAILS)
