"""From IDX files to normalized splits, and what is refused on the way."""

import hashlib
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from stages.core.datasets import normalize_pixels  # FIXME
from stages.core.schemas import SPLITS, normalized, summary
from stages.core.sums import record  # FIXME
from stages.core.tensors import read_tensors  # FIXME
from tensordict import TensorDict

from stages import normalize
from stages.core.config.params import load_params
from stages.core.data.idx import FILES, write_idx
from stages.core.files.errors import UserError
from stages.core.files.tables import read_table
from stages.normalize import DETAILS, METRICS, NORMALIZED, stratified_split
from tests.conftest import PROJECT, make_images, write_params

RAW = Path("artifacts/raw/tiny")
MNIST_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]  # images of each class


def write_raw(
    train: tuple[torch.Tensor, torch.Tensor] | None = None, test: tuple[torch.Tensor, torch.Tensor] | None = None
) -> None:
    RAW.mkdir(parents=True, exist_ok=True)
    for split, (images, labels) in {"train": train or make_images(300, 1), "test": test or make_images(100, 2)}.items():
        write_idx(RAW / FILES[f"{split}_images"], images)
        write_idx(RAW / FILES[f"{split}_labels"], labels)
    record("download", RAW)


def read_splits(mean: float, std: float, num_classes: int = 10) -> dict[str, TensorDict]:
    return {split: read_tensors(NORMALIZED / split, normalized(num_classes, mean, std)) for split in SPLITS}


def refused() -> str:
    """The message that `main` ends with; it must leave nothing behind."""
    with pytest.raises(UserError) as refusal:
        normalize.main()
    assert not NORMALIZED.exists()
    assert not NORMALIZED.with_name("normalized.partial").exists()
    assert not METRICS.exists()
    return str(refusal.value)


def test_values(workspace: Path, params: dict[str, Any]) -> None:
    mean, std = 0.1307, 0.3081
    params["normalize"].update(mean=mean, std=std)
    write_params(params, workspace)
    write_raw()
    normalize.main()
    images = torch.cat([make_images(300, 1)[0], make_images(100, 2)[0]])
    labels = torch.cat([make_images(300, 1)[1], make_images(100, 2)[1]])
    splits = read_splits(mean, std)
    assert {split: len(data) for split, data in splits.items()} == {"train": 250, "validation": 50, "test": 100}
    for data in splits.values():
        assert data["image"].dtype == torch.float32
        assert data["image"].shape == (len(data), 1, 28, 28)
        assert data["label"].dtype == data["id"].dtype == torch.int64
        # an id is the image's place in the training file, then in the test file
        expected = (images[data["id"]].unsqueeze(1).double() / 255 - mean) / std
        torch.testing.assert_close(data["image"].double(), expected, rtol=0, atol=1e-6)
        assert torch.equal(data["label"], labels[data["id"]].long())


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.5), (0.1307, 0.3081), (1.0, 0.001)])
def test_every_byte(mean: float, std: float) -> None:
    values = normalize_pixels(torch.arange(256, dtype=torch.uint8), mean, std)
    assert values.dtype == torch.float32
    assert values.tolist() == pytest.approx([(byte / 255 - mean) / std for byte in range(256)], abs=1e-6 / std)


def test_splits_are_disjoint_and_complete(workspace: Path) -> None:
    write_raw()
    normalize.main()
    ids = {split: set(data["id"].tolist()) for split, data in read_splits(0.5, 0.5).items()}
    assert sum(len(of_split) for of_split in ids.values()) == 400
    assert ids["train"] | ids["validation"] == set(range(300))
    assert ids["test"] == set(range(300, 400))


def test_summary(workspace: Path) -> None:
    write_raw()
    normalize.main()
    table = read_table(NORMALIZED / "summary.parquet", summary(10))
    assert table["id"].n_unique() == table.height == 400
    images, labels = make_images(300, 1)
    for row in table.filter(pl.col("id").is_in([0, 57, 299])).iter_rows(named=True):
        image = images[row["id"]]
        assert row["label"] == labels[row["id"]]
        assert row["pixel_mean"] == pytest.approx(image.double().mean().item(), rel=1e-5)
        assert row["pixel_std"] == pytest.approx(image.double().std(correction=0).item(), rel=1e-5)
        assert row["sha256"] == hashlib.sha256(image.numpy().tobytes()).hexdigest()


def test_split_is_stratified() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)[torch.randperm(100, generator=torch.Generator())]
    kept, held = stratified_split(labels, share=0.1, seed=1)
    assert torch.bincount(labels[held]).tolist() == [5, 3, 2]
    assert torch.bincount(labels[kept]).tolist() == [45, 27, 18]
    # largest remainder: 3.5, 2.1 and 1.4 are exact
    assert torch.bincount(labels[stratified_split(labels, share=0.07, seed=1)[1]]).tolist() == [4, 2, 1]


def test_mnist_holds_out_5000_of_60000(params: dict[str, Any]) -> None:
    labels = torch.arange(10).repeat_interleave(torch.tensor(MNIST_COUNTS))
    share = load_params(PROJECT / "params.yaml").normalize.validation
    kept, held = stratified_split(labels, share, seed=1)
    assert torch.bincount(labels[held]).tolist() == [494, 562, 496, 511, 487, 452, 493, 522, 487, 496]
    assert (len(kept), len(held)) == (55_000, 5_000)


@pytest.mark.parametrize("share", [0.0001, 0.07, 0.5, 0.9999])
def test_a_class_of_two_images_is_in_both_parts(share: float) -> None:
    labels = torch.tensor([0] * 90 + [1] * 7 + [2] * 2 + [4])
    kept, held = stratified_split(labels, share, seed=1)
    assert labels[kept].unique().tolist() == [0, 1, 2, 4]
    assert labels[held].unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("share", "held_out"),
    [(0.01, 7), (0.07, 7), (0.1, 10), (0.104, 10), (0.106, 11), (0.5, 50), (0.93, 93), (0.99, 93)],
)
def test_split_is_disjoint_complete_and_ascending(share: float, held_out: int) -> None:
    labels = torch.arange(100) % 7
    kept, held = stratified_split(labels, share, seed=3)
    assert len(held) == held_out
    assert torch.cat([kept, held]).sort().values.tolist() == list(range(100))
    assert kept.tolist() == sorted(kept.tolist())
    assert held.tolist() == sorted(held.tolist())


def test_split_depends_on_the_seed_alone(workspace: Path, params: dict[str, Any]) -> None:
    write_raw()
    held: list[list[int]] = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(held))
        params["seed"] = seed
        write_params(params, workspace)
        normalize.main()
        held.append(read_splits(0.5, 0.5)["validation"]["id"].tolist())
    assert held[0] == held[1]
    assert held[0] != held[2]


def test_duplicates_are_reported(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images, labels), (test_images, test_labels) = make_images(300, 1), make_images(100, 2)
    test_images[3] = images[3]
    test_images[4] = test_images[14]
    write_raw((images, labels), (test_images, test_labels))
    normalize.main()
    assert json.loads(METRICS.read_text()) == {"images": 400, "duplicates": 4}
    details = json.loads(DETAILS.read_text())
    assert set(details.pop("made_from")) == {"data", "settings", "code", "versions", "device"}
    assert details == {
        "train": 250,
        "validation": 50,
        "test": 100,
        "duplicates_across_splits": 2,
        "duplicates_within_split": 2,
    }
    out = capsys.readouterr().out
    assert out == "normalize: 250 train, 50 validation, 100 test; 2 exact duplicates across splits\n"


def test_no_duplicates(workspace: Path) -> None:
    write_raw()
    normalize.main()
    assert json.loads(METRICS.read_text())["duplicates"] == 0


def test_constant_image(workspace: Path) -> None:
    images, labels = make_images(100, 2)
    images[42] = 7
    write_raw(test=(images, labels))
    message = refused()
    assert "summary.parquet violates its schema" in message
    # the summary's rows: 300 of the training file, then the test file's
    assert "column 'pixel_std': no constant image (1 failing; row 342: 0.0)" in message


@pytest.mark.parametrize("split", ["train", "test"])
def test_label_outside_the_classes(workspace: Path, split: str) -> None:
    images, labels = make_images(100, 2)
    labels[[13, 17]] = torch.tensor([10, 255], dtype=torch.uint8)
    write_raw(**{split: (images, labels)})
    message = refused()
    assert "artifacts/raw/tiny violates its schema" in message
    assert "column 'label': in 0..9 (failing rows 13, 17, found 10, 255)" in message


def test_a_class_share_out_of_bounds_is_reported(workspace: Path, params: dict[str, Any]) -> None:
    params["normalize"]["class_share"] = {"min": 0.05, "max": 0.2}
    params["datasets"]["tiny"]["classes"][3] = "three"
    write_params(params, workspace)
    images, labels = make_images(100, 2)
    labels[labels == 4] = 3
    labels[0] = 4
    labels[1] = 3
    write_raw(test=(images, labels))
    assert refused().split("\n") == [
        "params.yaml: normalize.class_share: allowed are 0.05 to 0.2, artifacts/raw/tiny has:",
        "  test: class 'three' has 0.2100",
        "  test: class '4' has 0.0100",
        "  `min: 0.01` and `max: 0.21` there would allow it",
    ]
    params["normalize"]["class_share"] = {"min": 0.01, "max": 0.21}
    write_params(params, workspace)
    normalize.main()


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_without_any_image(workspace: Path, split: str) -> None:
    images, labels = make_images(180, 1)
    labels[labels == 4] = 5
    write_raw(**{split: (images, labels)})
    needed = "artifacts/raw/tiny: each class needs two images in the training file and one in the test file, found:"
    lacking = ["train", "validation"] if split == "train" else ["test"]
    assert refused().split("\n") == [needed, *(f"  {name}: no image of class '4'" for name in lacking)]


def test_classes_of_one_image_cannot_be_split(workspace: Path) -> None:
    write_raw(train=make_images(10, 1))
    assert refused().count("\n  validation: no image of class") == 10


def test_the_default_settings_suit_a_small_and_uneven_data_set(workspace: Path, params: dict[str, Any]) -> None:
    params["normalize"] = load_params(PROJECT / "params.yaml").normalize.model_dump()
    params["datasets"]["tiny"]["classes"] = ["cat", "dog", "owl"]
    write_params(params, workspace)
    labels = torch.tensor([0] * 420 + [1] * 120 + [2] * 60, dtype=torch.uint8)
    write_raw((make_images(600, 1)[0], labels), (make_images(100, 2)[0], labels[::6]))
    normalize.main()
    held = read_splits(0.5, 0.5, num_classes=3)["validation"]
    assert torch.bincount(held["label"]).tolist() == [35, 10, 5]


def test_images_and_labels_that_do_not_match(workspace: Path) -> None:
    images, labels = make_images(100, 2)
    write_raw(test=(images, labels[:-1]))
    message = refused()
    assert f"{RAW / FILES['test_images']} has 100 images, {RAW / FILES['test_labels']} has 99 labels" in message


def test_refusal_keeps_the_splits_of_an_earlier_run(workspace: Path) -> None:
    write_raw()
    normalize.main()
    before = read_splits(0.5, 0.5)["test"].clone()
    images, labels = make_images(100, 5)
    images[0] = 0
    write_raw(test=(images, labels))
    with pytest.raises(UserError, match="no constant image"):
        normalize.main()
    after = read_splits(0.5, 0.5)["test"]
    assert torch.equal(before["image"], after["image"])
