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

from stages import download, evaluate, export, normalize, parity, train
from stages.core.config.params import load_params, override_params
from stages.core.data.splits import read_dataset
from stages.core.examples import image
from stages.core.examples.spec import Opening, Spec
from stages.core.files import layout, schemas
from stages.core.files.arrays import write_array
from stages.core.files.errors import UserError
from stages.core.files.tables import read_table, write_table
from stages.core.nets.checkpoint import build_calibrated, load_model, save_model
from stages.core.nets.normalization import Normalization
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
    """Return a copy of that folder, which is the current one."""
    folder = tmp_path / "ready"
    shutil.copytree(shipped, folder)
    monkeypatch.chdir(folder)
    return folder


def read_report() -> Any:
    return json.loads(layout.PARITY_DETAILS.read_text())


def test_a_right_export_passes(ready: Path) -> None:
    parity.main()
    report = read_report()
    assert report["proven"] is True
    assert 0 < report["max_abs_diff"] < 1e-4
    assert set(report["max_abs_diff_by_input"]) == {"batch_1", "batch_7", "batch_100", "all_0", "all_255", "noise"}
    assert report["max_abs_diff"] == max(report["max_abs_diff_by_input"].values())
    metrics = json.loads(layout.PARITY_METRICS.read_text())
    assert metrics == {"tolerance_used": report["max_abs_diff"] / 1e-4, "different_labels": 0}
    assert report["label_agreement"] == 1
    assert report["different_labels"] == report["near_ties"] == report["changed_since_evaluation"] == 0
    assert report["num_images"] == 100
    accuracy = json.loads(layout.METRICS.read_text())["accuracy"]
    assert report["accuracy_onnx"] == report["accuracy_pytorch"] == pytest.approx(accuracy)


def test_batches_larger_than_the_split_are_compared_once_and_by_their_real_size(
    ready: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    override_params(ready / "params.yaml", {"parity.batch_sizes": [10000, 7, 256, 100]})
    parity.main()
    assert set(read_report()["max_abs_diff_by_input"]) == {"batch_7", "batch_100", "all_0", "all_255", "noise"}
    assert "at batch sizes 7, 100;" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["model.model.network.0.weight", "model.model.network.6.running_var", "model.model.network.13.bias"]
)
def test_one_changed_weight_is_found(ready: Path, name: str) -> None:
    model = onnx.load(layout.ONNX)
    [weight] = [weight for weight in model.graph.initializer if weight.name == name]
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] += 0.01
    weight.CopyFrom(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, layout.ONNX)
    layout.EXPORT.record(layout.ONNX)
    with pytest.raises(UserError, match=r"^artifacts/onnx/model\.onnx does not match .*: logits differ by"):
        parity.main()
    report = read_report()
    assert report["proven"] is False
    assert report["max_abs_diff"] > 1e-4
    assert report["changed_since_evaluation"] == 0


def change_spec(spec: Spec, **changes: Any) -> Spec:
    return spec.model_copy(update=changes)


@pytest.mark.parametrize("change", [{"mean": (0.4,)}, {"std": (0.6,)}], ids=["mean", "std"])
def test_wrong_normalization_is_found(ready: Path, change: dict[str, tuple[float]]) -> None:
    model, manifest = load_model()
    model.model.normalization = Normalization(change_spec(manifest.spec, **change))
    onnx.save(export.to_onnx(model, manifest, OPSET), layout.ONNX)
    layout.EXPORT.record(layout.ONNX)
    with pytest.raises(UserError, match="logits differ by"):
        parity.main()
    assert read_report()["max_abs_diff"] > 1e-4


def test_other_labels_are_found(ready: Path) -> None:
    """With an untrained network in the file, the agreement falls with the labels that differ."""
    _, manifest = load_model()
    torch.manual_seed(2)
    onnx.save(export.to_onnx(build_calibrated(manifest), manifest, OPSET), layout.ONNX)
    layout.EXPORT.record(layout.ONNX)
    with pytest.raises(UserError, match=r"logits differ by .*; \d+ labels differ; see artifacts/details/parity\.json"):
        parity.main()
    report = read_report()
    assert report["label_agreement"] < 0.5
    assert report["accuracy_onnx"] < 0.5
    assert report["accuracy_pytorch"] == json.loads(layout.METRICS.read_text())["accuracy"]


def test_changed_predictions_are_found(ready: Path) -> None:
    schema = schemas.predictions(10, 100)
    table = read_table(layout.PREDICTIONS, schema)
    changed = table.with_columns(
        prediction=pl.when(pl.col("index") < 3).then((pl.col("prediction") + 1) % 10).otherwise(pl.col("prediction"))
    )
    write_table(changed, layout.PREDICTIONS, schema)
    layout.EVALUATE.record(layout.PREDICTIONS)
    with pytest.raises(UserError, match=r"3 predictions differ from those in artifacts/plots/predictions\.csv"):
        parity.main()
    assert read_report()["changed_since_evaluation"] == 3


def test_a_weight_that_is_not_a_number_is_found(ready: Path) -> None:
    model = onnx.load(layout.ONNX)
    [bias] = [weight for weight in model.graph.initializer if weight.name == "model.model.network.13.bias"]
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(10, np.nan, dtype=np.float32), bias.name))
    onnx.save(model, layout.ONNX)
    layout.EXPORT.record(layout.ONNX)
    with pytest.raises(UserError, match="logits differ by"):
        parity.main()
    assert read_report()["max_abs_diff"] > 1e30


@pytest.mark.parametrize("size", [0, 1000, -1000])
def test_a_truncated_file_is_an_error(ready: Path, size: int) -> None:
    layout.ONNX.write_bytes(layout.ONNX.read_bytes()[:size])
    layout.EXPORT.record(layout.ONNX)
    with pytest.raises(UserError, match=r"^artifacts/onnx/model\.onnx is not a valid ONNX file"):
        parity.main()
    assert not layout.PARITY_METRICS.exists()


def test_a_missing_file_is_an_error(ready: Path) -> None:
    layout.ONNX.unlink()
    with pytest.raises(UserError, match=r"^artifacts/onnx/model\.onnx"):
        parity.main()


OTHER_OPENING = Opening(color="grey", resize="crop", centre_ink=False, max_pixels=50_000_000)


@pytest.mark.parametrize(
    "change",
    [{"shape": (1, 24, 24)}, {"classes": list("abcde")}, {"mean": (0.4,)}, {"opening": OTHER_OPENING}],
    ids=lambda change: next(iter(change)),
)
def test_a_file_with_another_spec_is_an_error(ready: Path, change: dict[str, Any]) -> None:
    _, manifest = load_model()
    other = manifest.model_copy(update={"spec": change_spec(manifest.spec, **change)})
    onnx.save(export.to_onnx(build_calibrated(other), other, OPSET), layout.ONNX)
    layout.EXPORT.record(layout.ONNX)
    with pytest.raises(UserError, match=r"^artifacts/onnx/model\.onnx has the spec .*, artifacts/model/model\.pt has "):
        parity.main()
    assert not layout.PARITY_METRICS.exists()


def test_inputs_that_do_not_fit_the_table_are_an_error(ready: Path) -> None:
    inputs = read_dataset().read("test").inputs[:60].copy()
    write_array(layout.split_array("test"), inputs.shape, inputs.dtype, [inputs])
    layout.NORMALIZE.record(layout.NORMALIZED)
    model, manifest = load_model()
    digest = layout.NORMALIZE.digest(layout.NORMALIZED)
    save_model(manifest.model_copy(update={"data_sha256": digest}), model.model.state_dict())
    layout.TRAIN.record(layout.MODEL, layout.MANIFEST)
    expected = r"^artifacts/normalized/test\.npy holds uint8 \[60, 1, 28, 28\], expected uint8 \[100, 1, 28, 28\]$"
    with pytest.raises(UserError, match=expected):
        parity.main()


def test_a_model_of_other_data_is_an_error(ready: Path) -> None:
    override_params(ready / "params.yaml", {"seed": 7})
    normalize.main()
    with pytest.raises(UserError, match=r"^artifacts/model/model\.pt was not trained on the data in artifacts/norm"):
        parity.main()
    assert not layout.PARITY_METRICS.exists()


def test_near_ties_are_counted_apart() -> None:
    pytorch = torch.tensor([[1.0, 0.0, 0.5], [1.0, 1.0 - 5e-5, 0.0], [1.0, 1.0 - 5e-4, 0.0]])
    assert parity.count_labels(torch.tensor([0, 0, 0]), pytorch, 1e-4) == (0, 0)
    assert parity.count_labels(torch.tensor([0, 1, 0]), pytorch, 1e-4) == (0, 1)
    assert parity.count_labels(torch.tensor([0, 0, 1]), pytorch, 1e-4) == (1, 0)
    # That the first two classes nearly tie does not make a near-tie of the third.
    assert parity.count_labels(torch.tensor([2, 2, 1]), pytorch, 1e-4) == (3, 0)
    assert parity.count_labels(torch.tensor([2, 1, 1]), pytorch, 1e-4) == (2, 1)


def test_compare_by_hand() -> None:
    pytorch = torch.tensor([[1.0, 0.0], [0.25, 0.5]])
    assert parity.compare(pytorch.clone(), pytorch, 1e-4) == (0, 0, 0)
    assert parity.compare(pytorch - torch.tensor([[0.0, 0.25], [0.0, 0.0]]), pytorch, 1e-4) == (0.25, 0, 0)
    assert parity.compare(pytorch + torch.tensor([[0.0, 0.0], [0.5, 0.0]]), pytorch, 1e-4) == (0.5, 1, 0)
    assert parity.compare(pytorch + torch.tensor([[0.0, 0.0], [0.5, 0.0]]), pytorch, 0.25) == (0.5, 0, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_logit_that_is_not_finite_is_a_difference(value: float) -> None:
    pytorch = torch.tensor([[1.0, 0.0], [0.25, 0.5]])
    wrong = pytorch.clone()
    wrong[1, 0] = value
    largest = torch.finfo(torch.float32).max
    assert parity.compare(wrong, pytorch, 1e-4).max_abs_diff == largest
    assert parity.compare(wrong, wrong, 1e-4).max_abs_diff == largest


def test_every_reason_is_named() -> None:
    assert parity.reasons_against(REPORT, 1e-6) == []
    assert parity.reasons_against(REPORT, 9e-7) == ["logits differ by 1.00e-06 (noise), allowed: at most 9.00e-07"]
    assert parity.reasons_against(REPORT | {"different_labels": 4, "changed_since_evaluation": 2}, 1e-4) == [
        "4 labels differ",
        "2 predictions differ from those in artifacts/plots/predictions.csv",
    ]


def test_adversarial_inputs_are_black_white_and_noise(shipped: Path) -> None:
    _, manifest = load_model(shipped / layout.MODEL)
    inputs = image.adversarial(manifest.spec, 20, seed=1)
    assert {name: (array.shape, array.dtype.name) for name, array in inputs.items()} == {
        "all_0": ((1, 1, 28, 28), "uint8"),
        "all_255": ((1, 1, 28, 28), "uint8"),
        "noise": ((20, 1, 28, 28), "uint8"),
    }
    assert (np.unique(inputs["all_0"]).tolist(), np.unique(inputs["all_255"]).tolist()) == ([0], [255])
    assert len(np.unique(inputs["noise"])) == 256
    np.testing.assert_array_equal(inputs["noise"], image.adversarial(manifest.spec, 20, seed=1)["noise"])


@pytest.mark.slow
@pytest.mark.parametrize("recipe", load_params(PROJECT / "params.yaml").recipes)
def test_every_recipe_is_proven(
    copied: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is trained for one epoch on few images."""
    monkeypatch.chdir(copied)
    override_params(copied / "params.yaml", {"recipe": recipe, f"recipes.{recipe}.epochs": 1})
    for stage in (train, evaluate, export, parity):
        stage.main()
    assert read_report()["label_agreement"] == 1
    assert capsys.readouterr().err == ""
