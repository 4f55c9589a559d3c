"""Metrics against values worked out by hand, and the files that the stage writes."""

import json
import shutil
from math import log
from pathlib import Path

import polars as pl
import pytest
import torch
from stages.core.checkpoint import build  # FIXME
from stages.core.tensors import read_tensors, write_tensors  # FIXME

from stages import download, evaluate, normalize, train
from stages.core import schemas, sums
from stages.core.evaluation.inference import infer
from stages.core.files.errors import UserError
from stages.core.files.tables import read_table
from stages.core.nets.checkpoint import load_model, save_model
from tests.conftest import PROJECT, make_once, tiny_params, write_params

# the predicted class has probability 1/2, the two others 1/4 each
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
    """A copy of that folder as it was before the evaluation, and the current one."""
    folder = tmp_path / "before"
    shutil.copytree(evaluated, folder)
    for path in (evaluate.METRICS, evaluate.DETAILS, evaluate.PER_CLASS, evaluate.PREDICTIONS):
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


def test_files_of_a_run(evaluated: Path) -> None:
    overall, details = (json.loads((evaluated / path).read_text()) for path in (evaluate.METRICS, evaluate.DETAILS))
    assert all(value for value in details["made_from"].values())
    assert details["num_images"] == 100
    assert details["accuracy_low"] < overall["accuracy"] < details["accuracy_high"]

    model, manifest = load_model(evaluated / evaluate.MODEL)
    test = read_tensors(evaluated / evaluate.TEST, schemas.normalized(10, 0.5, 0.5))
    with torch.inference_mode():
        logits = model(test["image"])
    predictions = read_table(evaluated / evaluate.PREDICTIONS, schemas.predictions(10, 100))
    assert predictions["label"].to_list() == test["label"].tolist()
    assert predictions["prediction"].to_list() == logits.argmax(1).tolist()
    assert predictions["confidence"].to_list() == pytest.approx(logits.softmax(1).amax(1).tolist(), abs=1e-4)
    assert 0.2 < overall["accuracy"] < 1
    assert overall["accuracy"] == (predictions["label"] == predictions["prediction"]).mean()
    sure = predictions.filter(pl.col("confidence") >= manifest.unsure_below)
    wrong = sure.filter(pl.col("label") != pl.col("prediction"))
    assert overall["coverage"] == (100 - details["unsure_images"]) / 100 == sure.height / 100
    assert overall["risk"] == details["sure_errors"] / sure.height == wrong.height / sure.height

    per_class = pl.read_csv(evaluated / evaluate.PER_CLASS, schema_overrides={"class": pl.String})
    assert per_class["class"].to_list() == [str(digit) for digit in range(10)]
    assert per_class["images"].to_list() == [10] * 10
    for name in ("precision", "recall", "f1"):
        assert overall[name] == pytest.approx(per_class[name].mean())


@pytest.mark.parametrize("batch_size", [1, 7, 100, 1000])
def test_batch_size_changes_no_logit(evaluated: Path, batch_size: int) -> None:
    model, _ = load_model(evaluated / evaluate.MODEL)
    test = read_tensors(evaluated / evaluate.TEST, schemas.normalized(10, 0.5, 0.5))
    logits = infer(model.train(), test, torch.device("cpu"), batch_size)
    with torch.inference_mode():
        torch.testing.assert_close(logits, model.eval()(test["image"]), rtol=0, atol=1e-5)


def test_class_without_test_image_is_refused(before: Path) -> None:
    schema = schemas.normalized(10, 0.5, 0.5)
    test = read_tensors(evaluate.TEST, schema)
    kept = test[test["label"] != 9].clone()
    write_tensors(kept, evaluate.TEST, schema)
    model, manifest = load_model(evaluate.MODEL)
    sums.record("normalize", evaluate.TEST)
    save_model(
        evaluate.MODEL,
        manifest.model_copy(update={"data_sha256": sums.digest("normalize", evaluate.TEST.parent)}),
        model.network.state_dict(),
    )
    sums.record("train", evaluate.MODEL)
    with pytest.raises(UserError, match=r"^artifacts/metrics/per_class\.csv violates its schema:\n  column 'images'"):
        evaluate.main()
    assert not evaluate.METRICS.exists()


def test_model_for_another_image_shape_is_refused(before: Path) -> None:
    _, manifest = load_model(evaluate.MODEL)
    small = manifest.model_copy(update={"image_shape": (1, 14, 14)})
    save_model(evaluate.MODEL, small, build(small).network.state_dict())
    sums.record("train", evaluate.MODEL)
    with pytest.raises(
        UserError,
        match=r"^artifacts/model/model\.pt takes images of shape \(1, 14, 14\), .*normalized/test have \(1, 28, 28\)",
    ):
        evaluate.main()
    assert not evaluate.METRICS.exists()


@pytest.mark.parametrize(("mean", "std"), [(0.1, 0.5), (0.5, 1.0)])
def test_model_for_another_normalization_is_refused(before: Path, mean: float, std: float) -> None:
    model, manifest = load_model(evaluate.MODEL)
    other = manifest.model_copy(update={"mean": mean, "std": std})
    save_model(evaluate.MODEL, other, model.network.state_dict())
    sums.record("train", evaluate.MODEL)
    with pytest.raises(UserError, match=r"^artifacts/normalized/test violates its schema:\n  column 'image': all pix"):
        evaluate.main()
    assert not evaluate.METRICS.exists()


def test_model_of_other_data_is_refused(before: Path) -> None:
    model, manifest = load_model(evaluate.MODEL)
    save_model(evaluate.MODEL, manifest.model_copy(update={"data_sha256": "0" * 64}), model.network.state_dict())
    sums.record("train", evaluate.MODEL)
    with pytest.raises(
        UserError, match=r"^artifacts/model/model\.pt was trained on other data than those in artifacts/"
    ):
        evaluate.main()


def test_the_committed_model_is_calibrated() -> None:
    """The figures in git are those of the chosen recipe on MNIST's test split."""
    assert json.loads((PROJECT / evaluate.METRICS).read_text())["calibration_error"] < 0.005
