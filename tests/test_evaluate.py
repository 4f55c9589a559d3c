"""Test stage `evaluate`: the files that it writes, and the models and data that it does not take."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from stages import download, evaluate, normalize, train
from stages.core.data import schemas as data_schemas
from stages.core.data import splits
from stages.core.data.raw import Joined
from stages.core.data.splits import Dataset, read_dataset
from stages.core.evaluation.inference import infer
from stages.core.examples.spec import Opening
from stages.core.files import layout, schemas
from stages.core.files.errors import UserError
from stages.core.files.layout import dataset_file
from stages.core.files.tables import read_json, read_table, write_table
from stages.core.nets.checkpoint import load_model, save_model
from tests.conftest import PROJECT, make_once, tiny_params, write_params

# The predicted class has probability 1/2, the two others 1/4 each
LABELS = torch.tensor([0, 0, 0, 0, 1, 2])
PREDICTED = torch.tensor([0, 0, 1, 1, 1, 2])
LOGITS = torch.full((6, 3), 0.25).scatter(1, PREDICTED.unsqueeze(1), 0.5).log()


@pytest.fixture(scope="module")
def evaluated(tiny_idx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which all stages up to the evaluation ran; do not write to it."""

    def make(folder: Path) -> None:
        params = tiny_params(tiny_idx)
        # This model errs at times.
        params["recipe"] = "article"
        params["recipes"]["article"]["optimizer"]["lr"] = 0.006
        write_params(params, folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            for stage in (download, normalize, train, evaluate):
                stage.main()

    return make_once(tmp_path_factory, "evaluated", make)


@pytest.fixture
def before(evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of that folder as it was before the evaluation, and make it the current one."""
    folder = tmp_path / "before"
    shutil.copytree(evaluated, folder)
    for path in (layout.METRICS, layout.DETAILS, layout.PER_CLASS, layout.PREDICTIONS, layout.LABEL_ERRORS):
        (folder / path).unlink()
    monkeypatch.chdir(folder)
    return folder


def test_table_of_predictions() -> None:
    table = evaluate.tabulate(LOGITS, LABELS)
    assert table.columns == ["index", "label", "prediction", "confidence"]
    assert table["index"].to_list() == list(range(6))
    assert table["label"].to_list() == LABELS.tolist()
    assert table["prediction"].to_list() == PREDICTED.tolist()
    assert table["confidence"].to_list() == [0.5] * 6


def test_files_of_a_run(evaluated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(evaluated)
    overall, details = read_json(layout.METRICS), read_json(layout.DETAILS)
    assert all(value for value in details["made_from"].values())
    assert set(details["made_from"]) == {"data", "settings", "code", "versions", "device", "trained_on"}
    assert details["num_images"] == 100
    assert details["accuracy_low"] < overall["accuracy"] < details["accuracy_high"]

    model, manifest = load_model()
    test = read_dataset().read("test")
    with torch.inference_mode():
        logits = model(torch.from_numpy(test.inputs))
    predictions = read_table(layout.PREDICTIONS, schemas.predictions(10, 100))
    assert predictions["label"].to_list() == test.labels.tolist()
    assert predictions["prediction"].to_list() == logits.argmax(1).tolist()
    assert predictions["confidence"].to_list() == pytest.approx(logits.softmax(1).amax(1).tolist(), abs=1e-4)
    assert 0.2 < overall["accuracy"] < 1
    assert overall["accuracy"] == (predictions["label"] == predictions["prediction"]).mean()
    assert overall["accuracy"] < overall["top5_accuracy"] <= 1
    sure = predictions.filter(pl.col("confidence") >= manifest.unsure_below)
    wrong = sure.filter(pl.col("label") != pl.col("prediction"))
    assert overall["coverage"] == (100 - details["unsure_images"]) / 100 == sure.height / 100
    assert overall["risk"] == details["sure_errors"] / sure.height == wrong.height / sure.height

    errors = read_table(layout.LABEL_ERRORS, schemas.label_errors(10))
    counts = dict(errors.group_by("split").len().iter_rows())
    assert details["likely_mislabelled"] == {split: counts.get(split, 0) for split in ("validation", "test")}
    examples = read_dataset().examples
    assert errors.join(examples, on=["id", "split", "label"]).height == errors.height > 0
    tested = predictions.with_columns(id=examples.filter(split="test")["id"])
    suspects = tested.join(errors.filter(split="test"), on="id")
    assert (suspects["prediction"] != suspects["label"]).all()
    assert ((suspects["suggested_confidence"] - suspects["confidence"]).abs() < 1e-4).all()

    per_class = read_table(layout.PER_CLASS, schemas.per_class())
    assert per_class["class"].to_list() == [str(digit) for digit in range(10)]
    assert per_class["images"].to_list() == [10] * 10
    for name in ("precision", "recall", "f1"):
        assert overall[name] == pytest.approx(per_class[name].mean())
    layout.EVALUATE.verify(layout.METRICS, layout.DETAILS, layout.PER_CLASS, layout.PREDICTIONS, layout.LABEL_ERRORS)


@pytest.mark.parametrize("batch_size", [1, 7, 100, 1000])
def test_batch_size_changes_no_logit(evaluated: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int) -> None:
    monkeypatch.chdir(evaluated)
    model, _ = load_model()
    inputs = torch.from_numpy(read_dataset().read("test").inputs)
    logits = infer(model.train(), inputs, torch.device("cpu"), batch_size)
    with torch.inference_mode():
        torch.testing.assert_close(logits, model.eval()(inputs), rtol=0, atol=1e-5)


def save_for(data_sha256: str) -> None:
    """Save the model again as one that was trained on these data."""
    model, manifest = load_model()
    save_model(manifest.model_copy(update={"data_sha256": data_sha256}), model.model.state_dict())
    layout.TRAIN.record(layout.MODEL, layout.MANIFEST)


def keep_labels_below(dataset: Dataset, highest: int) -> None:
    """Leave out of the test split all images of higher classes."""
    kept = (pl.col("split") != "test") | (pl.col("label") < highest)
    inputs, labels_N = dataset.read("test")
    rows_N = (labels_N < highest).nonzero()[0]
    splits.write_split("test", dataset.spec, Joined([inputs.copy()]), rows_N, layout.NORMALIZED)
    write_table(dataset.examples.filter(kept), layout.EXAMPLES, data_schemas.examples(10))
    layout.NORMALIZE.record(layout.NORMALIZED)


def test_a_class_without_any_test_image_is_an_error(before: Path) -> None:
    keep_labels_below(read_dataset(), 9)
    save_for(layout.NORMALIZE.digest(layout.NORMALIZED))
    with pytest.raises(UserError, match=r"^artifacts/metrics/per_class\.csv violates its schema:\n  column 'images'"):
        evaluate.main()
    assert not layout.METRICS.exists()


OTHER_OPENING = Opening(color="grey", resize="crop", centre_ink=False, max_pixels=50_000_000)
OTHER_DATA = r"^artifacts/model/model\.pt was not trained on the data in artifacts/normalized; `dvc repro`"


def test_a_model_of_other_data_is_an_error(before: Path) -> None:
    save_for("0" * 64)
    with pytest.raises(UserError, match=OTHER_DATA):
        evaluate.main()
    assert not layout.METRICS.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"shape": (1, 14, 56)},
        {"mean": (0.1,)},
        {"std": (1.0,)},
        {"classes": ["one", *"123456789"]},
        {"opening": OTHER_OPENING},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_model_of_another_spec_is_an_error(before: Path, change: dict[str, Any]) -> None:
    """The shape of the images, their normalization and the classes are part of the data."""
    dataset = read_dataset()
    other = dataset.spec.model_copy(update=change)
    for split in data_schemas.SPLITS:
        inputs = dataset.read(split).inputs.reshape(-1, *other.shape).copy()
        splits.write_split(split, other, Joined([inputs]), np.arange(len(inputs)), layout.NORMALIZED)
    splits.write_spec(other, layout.NORMALIZED)
    layout.NORMALIZE.record(layout.NORMALIZED)
    assert read_dataset().read("test").inputs.shape == (100, *other.shape)
    with pytest.raises(UserError, match=OTHER_DATA):
        evaluate.main()
    assert not layout.METRICS.exists()


def test_a_change_of_the_scale_makes_other_data(before: Path) -> None:
    path = dataset_file("tiny")
    path.write_text(path.read_text().replace("mean: 0.5", "mean: 0.25"))
    normalize.main()
    with pytest.raises(UserError, match=OTHER_DATA):
        evaluate.main()


@pytest.mark.parametrize(
    "path", [layout.MODEL, layout.MANIFEST, layout.SPEC, layout.EXAMPLES, layout.split_array("test")]
)
def test_a_file_that_its_stage_did_not_write_is_an_error(before: Path, path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path} is not what stage '[a-z]+' wrote"):
        evaluate.main()


def test_the_committed_model_is_calibrated() -> None:
    """The figures in git are those of the chosen recipe on MNIST's test split."""
    assert json.loads((PROJECT / layout.METRICS).read_text())["calibration_error"] < 0.005
