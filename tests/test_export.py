"""The exported file takes raw images, computes what the model computes, and holds nothing of this machine."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from stages import export
from stages.core.examples.spec import Spec
from stages.core.files import layout
from stages.core.files.errors import UserError
from stages.core.nets.checkpoint import load_model
from tests.conftest import CLASSES, PROJECT, make_images, tiny_params, write_params


@pytest.fixture(scope="module")
def exported(finished: Path) -> Path:
    """Return a folder in which the stages up to the export ran; do not write to it."""
    return finished


@pytest.fixture(scope="module")
def model(exported: Path) -> onnx.ModelProto:
    return onnx.load(exported / layout.ONNX)


def copy_model(source: Path, folder: Path) -> None:
    """Give `folder` what the stage needs: the params, the trained model and its checksums."""
    for name in ("params.yaml", layout.MODEL, layout.MANIFEST, layout.TRAIN.checksums):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, folder / name)


def test_the_model_is_one_file(exported: Path, model: onnx.ModelProto) -> None:
    assert sorted(path.name for path in (exported / layout.ONNX).parent.iterdir()) == ["SHA256SUMS", "model.onnx"]
    assert not any(weight.external_data for weight in model.graph.initializer)


def test_raw_images_go_in_and_logits_and_probabilities_come_out(model: onnx.ModelProto) -> None:
    [image] = model.graph.input
    assert image.name == "image"
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    batch, *shape = image.type.tensor_type.shape.dim
    assert batch.dim_param
    assert not batch.HasField("dim_value")
    assert [dim.dim_value for dim in shape] == [1, 28, 28]

    assert [output.name for output in model.graph.output] == ["logits", "probabilities"]
    for output in model.graph.output:
        assert output.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        first, second = output.type.tensor_type.shape.dim
        assert first.dim_param == batch.dim_param
        assert second.dim_value == 10


def test_metadata_are_those_of_the_model(exported: Path, model: onnx.ModelProto) -> None:
    about = {entry.key: entry.value for entry in model.metadata_props}
    _, manifest = load_model(exported / layout.MODEL)
    spec = json.loads(about.pop("spec"))
    assert spec == {
        "kind": "image",
        "shape": [1, 28, 28],
        "dtype": "uint8",
        "classes": CLASSES,
        "mean": [0.5],
        "std": [0.5],
        "opening": {"color": "grey", "resize": "fit", "centre_ink": False, "max_pixels": 100_000_000},
    }
    assert Spec.model_validate_json(json.dumps(spec)) == manifest.spec
    assert about == {
        "recipe": "convnet",
        "dataset": "tiny",
        "data_sha256": manifest.data_sha256,
        "model_sha256": hashlib.sha256((exported / layout.MODEL).read_bytes()).hexdigest(),
        "unsure_below": str(manifest.unsure_below),
    }


def test_nothing_of_this_machine(exported: Path, model: onnx.ModelProto) -> None:
    without_weights = onnx.ModelProto()
    without_weights.CopyFrom(model)
    for weight in without_weights.graph.initializer:
        weight.ClearField("raw_data")  # Any short text may occur in them by chance.
    content = without_weights.SerializeToString()
    assert len(content) < len((exported / layout.ONNX).read_bytes()) / 2
    private = [str(PROJECT), str(exported), str(Path.home()), "/home", "/tmp", "site-packages", 'File "', ".py"]
    assert [text for text in private if text.encode() in content] == []


def test_same_bytes_in_another_folder(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "some other folder"
    copy_model(exported, folder)
    monkeypatch.chdir(folder)
    export.main()
    assert layout.ONNX.read_bytes() == (exported / layout.ONNX).read_bytes()


@pytest.mark.parametrize("opset", [18, 20])
def test_opset_is_that_of_the_params(
    exported: Path, tiny_idx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opset: int
) -> None:
    copy_model(exported, tmp_path)
    params = tiny_params(tiny_idx)
    params["export"]["opset"] = opset
    write_params(params, tmp_path)
    monkeypatch.chdir(tmp_path)
    export.main()
    found = {entry.domain: entry.version for entry in onnx.load(layout.ONNX).opset_import}
    assert found[""] == opset


@pytest.mark.parametrize("count", [1, 3, 17])
def test_computes_what_the_calibrated_model_computes_at_any_batch(exported: Path, count: int) -> None:
    session = onnxruntime.InferenceSession(exported / layout.ONNX, providers=["CPUExecutionProvider"])
    images = make_images(count, seed=3)[0][:, None]
    logits, probabilities = session.run(None, {"image": images})
    model, manifest = load_model(exported / layout.MODEL)
    assert manifest.temperature != 1
    with torch.inference_mode():
        normalized = (torch.from_numpy(images).float() / 255 - 0.5) / 0.5
        expected = model.model.get_submodule("network")(normalized) / manifest.temperature
    np.testing.assert_allclose(logits, expected.numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(probabilities, expected.softmax(1).numpy(), rtol=0, atol=1e-5)


def test_a_damaged_model_is_an_error(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_model(exported, tmp_path)
    monkeypatch.chdir(tmp_path)
    layout.MODEL.write_bytes(layout.MODEL.read_bytes()[:1000])
    layout.TRAIN.record(layout.MODEL, layout.MANIFEST)
    with pytest.raises(UserError, match=r"^artifacts/model/model\.pt"):
        export.main()
    assert not layout.ONNX.exists()
