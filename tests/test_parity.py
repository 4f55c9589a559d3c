"""A right export passes; every way in which it could be wrong is found."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
import torch
from stages.core.checkpoint import build  # FIXME
from stages.core.sums import record  # FIXME

from stages import download, evaluate, export, normalize, parity, train
from stages.core import schemas
from stages.core.config.params import load_params, override_params
from stages.core.data.idx import FILES, read_idx, write_idx
from stages.core.files.errors import UserError
from stages.core.files.layout import RAW
from stages.core.files.tables import read_table, write_table
from stages.core.nets.checkpoint import load_model
from tests.conftest import PROJECT, make_once, tiny_params, write_params

OPSET = 20
REPORT = {
    "max_abs_diff": 1e-6,
    "different_labels": 0,
    "changed_since_evaluation": 0,
    "max_abs_diff_by_input": {"batch_1": 1e-7, "noise": 1e-6},
}


@pytest.fixture(scope="module")
def shipped(tiny_idx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which all stages up to the export ran; do not write to it."""

    def make(folder: Path) -> None:
        params = tiny_params(tiny_idx)
        params["recipe"] = "convnet"
        params["recipes"]["convnet"]["model"]["channels"] = [[8], [16], [24]]
        params["parity"]["noise_images"] = 50
        write_params(params, folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            for stage in (download, normalize, train, evaluate, export):
                stage.main()

    return make_once(tmp_path_factory, "shipped", make)


@pytest.fixture
def ready(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, and the current one."""
    folder = tmp_path / "ready"
    shutil.copytree(shipped, folder)
    monkeypatch.chdir(folder)
    return folder


def read_report() -> Any:
    return json.loads(parity.DETAILS.read_text())


def test_right_export_passes(ready: Path) -> None:
    parity.main()
    report = read_report()
    assert report["proven"] is True
    assert 0 < report["max_abs_diff"] < 1e-4
    assert set(report["max_abs_diff_by_input"]) == {"batch_1", "batch_7", "batch_100", "all_0", "all_255", "noise"}
    assert report["max_abs_diff"] == max(report["max_abs_diff_by_input"].values())
    metrics = json.loads(parity.METRICS.read_text())
    assert metrics == {"tolerance_used": report["max_abs_diff"] / 1e-4, "different_labels": 0}
    assert report["label_agreement"] == 1
    assert report["different_labels"] == report["near_ties"] == report["changed_since_evaluation"] == 0
    assert report["num_images"] == 100
    accuracy = json.loads(evaluate.METRICS.read_text())["accuracy"]
    assert report["accuracy_onnx"] == report["accuracy_pytorch"] == pytest.approx(accuracy)


def test_batches_larger_than_the_split_are_compared_once_and_by_their_real_size(
    ready: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    override_params(ready / "params.yaml", {"parity.batch_sizes": [10000, 7, 256, 100]})
    parity.main()
    assert set(read_report()["max_abs_diff_by_input"]) == {"batch_7", "batch_100", "all_0", "all_255", "noise"}
    assert "at batch sizes 7, 100;" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["model.network.0.weight", "model.network.6.running_var", "model.network.13.bias"])
def test_one_changed_weight_is_found(ready: Path, name: str) -> None:
    model = onnx.load(parity.ONNX)
    [weight] = [weight for weight in model.graph.initializer if weight.name == name]
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] += 0.01
    weight.CopyFrom(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, parity.ONNX)
    record("export", parity.ONNX)
    with pytest.raises(UserError, match=r"^artifacts/onnx/model\.onnx does not compute .*: logits differ by"):
        parity.main()
    report = read_report()
    assert report["proven"] is False
    assert report["max_abs_diff"] > 1e-4
    assert report["changed_since_evaluation"] == 0


@pytest.mark.parametrize("change", [{"mean": 0.4}, {"std": 0.6}], ids=["mean", "std"])
def test_wrong_normalization_is_found(ready: Path, change: dict[str, float]) -> None:
    model, manifest = load_model(parity.MODEL)
    onnx.save(export.to_onnx(model, manifest.model_copy(update=change), OPSET), parity.ONNX)
    record("export", parity.ONNX)
    with pytest.raises(UserError, match="logits differ by"):
        parity.main()
    assert read_report()["max_abs_diff"] > 1e-4


def test_other_labels_are_found(ready: Path) -> None:
    """An untrained network in the file: the agreement falls with the labels that differ."""
    _, manifest = load_model(parity.MODEL)
    torch.manual_seed(2)
    onnx.save(export.to_onnx(build(manifest), manifest, OPSET), parity.ONNX)
    record("export", parity.ONNX)
    with pytest.raises(UserError, match=r"logits differ by .*; \d+ labels differ; see artifacts/details/parity\.json"):
        parity.main()
    report = read_report()
    assert report["label_agreement"] < 0.5
    assert report["accuracy_onnx"] < 0.5
    assert report["accuracy_pytorch"] == json.loads(evaluate.METRICS.read_text())["accuracy"]


def test_changed_predictions_are_found(ready: Path) -> None:
    schema = schemas.predictions(10, 100)
    table = read_table(parity.PREDICTIONS, schema)
    changed = table.with_columns(
        prediction=pl.when(pl.col("index") < 3).then((pl.col("prediction") + 1) % 10).otherwise(pl.col("prediction"))
    )
    write_table(changed, parity.PREDICTIONS, schema)
    record("evaluate", parity.PREDICTIONS)
    with pytest.raises(UserError, match=r"3 predictions are not those of artifacts/plots/predictions\.csv"):
        parity.main()
    assert read_report()["changed_since_evaluation"] == 3


def test_weight_that_is_not_a_number_is_found(ready: Path) -> None:
    model = onnx.load(parity.ONNX)
    [bias] = [weight for weight in model.graph.initializer if weight.name == "model.network.13.bias"]
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(10, np.nan, dtype=np.float32), bias.name))
    onnx.save(model, parity.ONNX)
    record("export", parity.ONNX)
    with pytest.raises(UserError, match="logits differ by"):
        parity.main()
    assert read_report()["max_abs_diff"] > 1e30


@pytest.mark.parametrize("size", [0, 1000, -1000])
def test_truncated_file_is_refused(ready: Path, size: int) -> None:
    parity.ONNX.write_bytes(parity.ONNX.read_bytes()[:size])
    record("export", parity.ONNX)
    with pytest.raises(UserError, match=r"^artifacts/onnx/model\.onnx is no valid ONNX file"):
        parity.main()
    assert not parity.METRICS.exists()


def test_missing_file_is_refused(ready: Path) -> None:
    parity.ONNX.unlink()
    with pytest.raises(UserError, match=r"^artifacts/onnx/model\.onnx"):
        parity.main()


@pytest.mark.parametrize(
    "change", [{"image_shape": (1, 24, 24)}, {"classes": list("abcde")}], ids=["image shape", "classes"]
)
def test_file_of_another_model_is_refused(ready: Path, change: dict[str, Any]) -> None:
    _, manifest = load_model(parity.MODEL)
    other = manifest.model_copy(update=change)
    onnx.save(export.to_onnx(build(other), other, OPSET), parity.ONNX)
    record("export", parity.ONNX)
    with pytest.raises(UserError, match=r"artifacts/onnx/model\.onnx"):
        parity.main()


def test_raw_images_of_another_split_are_refused(ready: Path) -> None:
    for field in ("test_images", "test_labels"):
        path = RAW / "tiny" / FILES[field]
        write_idx(path, read_idx(path, ndim=3 if field == "test_images" else 1)[:60])
    record("download", RAW / "tiny")
    with pytest.raises(UserError, match=r"^artifacts/raw/tiny has test images \[60, "):
        parity.main()


def test_near_ties_are_counted_apart() -> None:
    pytorch = torch.tensor([[1.0, 0.0, 0.5], [1.0, 1.0 - 5e-5, 0.0], [1.0, 1.0 - 5e-4, 0.0]])
    assert parity.count_labels(torch.tensor([0, 0, 0]), pytorch, 1e-4) == (0, 0)
    assert parity.count_labels(torch.tensor([0, 1, 0]), pytorch, 1e-4) == (0, 1)
    assert parity.count_labels(torch.tensor([0, 0, 1]), pytorch, 1e-4) == (1, 0)
    # a third class is no near-tie because the first two are one
    assert parity.count_labels(torch.tensor([2, 2, 1]), pytorch, 1e-4) == (3, 0)
    assert parity.count_labels(torch.tensor([2, 1, 1]), pytorch, 1e-4) == (2, 1)


def test_compare_by_hand() -> None:
    pytorch = torch.tensor([[1.0, 0.0], [0.25, 0.5]])
    assert parity.compare(pytorch.clone(), pytorch, 1e-4) == (0, 0, 0)
    assert parity.compare(pytorch - torch.tensor([[0.0, 0.25], [0.0, 0.0]]), pytorch, 1e-4) == (0.25, 0, 0)
    assert parity.compare(pytorch + torch.tensor([[0.0, 0.0], [0.5, 0.0]]), pytorch, 1e-4) == (0.5, 1, 0)
    assert parity.compare(pytorch + torch.tensor([[0.0, 0.0], [0.5, 0.0]]), pytorch, 0.25) == (0.5, 0, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logit_that_is_not_finite_is_a_difference(value: float) -> None:
    pytorch = torch.tensor([[1.0, 0.0], [0.25, 0.5]])
    wrong = pytorch.clone()
    wrong[1, 0] = value
    largest = torch.finfo(torch.float32).max
    assert parity.compare(wrong, pytorch, 1e-4).max_abs_diff == largest
    assert parity.compare(wrong, wrong, 1e-4).max_abs_diff == largest


def test_every_reason_is_named() -> None:
    assert parity.reasons_against(REPORT, 1e-6) == []
    assert parity.reasons_against(REPORT, 9e-7) == ["logits differ by 1.00e-06 (noise), allowed is 9.00e-07"]
    assert parity.reasons_against(REPORT | {"different_labels": 4, "changed_since_evaluation": 2}, 1e-4) == [
        "4 labels differ",
        "2 predictions are not those of artifacts/plots/predictions.csv",
    ]


def test_adversarial_images() -> None:
    images = parity.adversarial_images((1, 28, 28), 20, seed=1)
    assert (images["all_0"].unique().tolist(), images["all_255"].unique().tolist()) == ([0], [255])
    assert images["noise"].shape == (20, 1, 28, 28)
    assert len(images["noise"].unique()) == 256
    assert torch.equal(images["noise"], parity.adversarial_images((1, 28, 28), 20, seed=1)["noise"])


@pytest.mark.slow
@pytest.mark.parametrize("recipe", load_params(PROJECT / "params.yaml").recipes)
def test_every_recipe_is_proved(
    copied: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not every figure of it: fewer epochs, and few images."""
    monkeypatch.chdir(copied)
    override_params(copied / "params.yaml", {"recipe": recipe, f"recipes.{recipe}.epochs": 1})
    for stage in (train, evaluate, export, parity):
        stage.main()
    assert read_report()["label_agreement"] == 1
    assert capsys.readouterr().err == ""
