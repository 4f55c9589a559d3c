"""A file of ours answers; anything else is an error before a session is made of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stages.core.deploy import onnx_model
from stages.core.deploy.onnx_model import OnnxModel
from stages.core.examples.spec import Spec
from stages.core.files.errors import UserError

Change = Callable[[onnx.ModelProto], object]
SPEC: dict[str, Any] = {
    "kind": "image",
    "shape": [1, 2, 2],
    "dtype": "uint8",
    "classes": ["even", "odd", "neither"],
    "mean": [0.0],
    "std": [1.0],
    "opening": {"color": "grey", "resize": "fit", "centre_ink": False, "max_pixels": 50_000_000},
}
METADATA = {"spec": json.dumps(SPEC), "unsure_below": "0.9"}
FLOATS = np.arange(12, dtype=np.float32).reshape(4, 3)


def ours() -> onnx.ModelProto:
    """Return what stage `export` writes, in small: images [batch, 1, 2, 2] times one matrix."""
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 1, 2, 2])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("logits", "probabilities")
    ]
    graph = helper.make_graph(nodes, "main", [image], outputs, [numpy_helper.from_array(FLOATS, "weight")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, METADATA)
    return model


def error_of(model: onnx.ModelProto | bytes, folder: Path) -> str:
    """Return the message of the error that loading this file raises."""
    path = folder / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    with pytest.raises(UserError) as caught:
        OnnxModel(path)
    message = str(caught.value)
    assert message.startswith(f"{path}")
    return message


def test_our_own_file_answers(tmp_path: Path) -> None:
    onnx.save(ours(), tmp_path / "model.onnx")
    model = OnnxModel(tmp_path / "model.onnx")
    assert model.spec == Spec.model_validate_json(json.dumps(SPEC))
    assert (model.unsure_below, model.metadata) == (0.9, METADATA)
    assert model.operators == {"Cast": 1, "Flatten": 1, "MatMul": 1, "Softmax": 1}
    images_NCHW = np.arange(8, dtype=np.uint8).reshape(2, 1, 2, 2)
    logits_NK, probabilities_NK = model.run(images_NCHW)
    np.testing.assert_allclose(logits_NK, images_NCHW.reshape(2, 4) @ FLOATS)
    np.testing.assert_allclose(probabilities_NK.sum(axis=1), 1, rtol=1e-6)


def foreign(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    model.graph.node.insert(2, helper.make_node("Spy", ["flat"], ["seen"], domain="com.example"))


def foreign_in_branch(model: onnx.ModelProto) -> None:
    """Add it where a look at only the outer graph does not find it."""
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    output = helper.make_tensor_value_info("seen", TensorProto.FLOAT, None)
    spy = helper.make_node("Spy", ["flat"], ["seen"], domain="com.example")
    plain = helper.make_node("Identity", ["flat"], ["seen"])
    branches = {
        "then_branch": helper.make_graph([plain], "then", [], [output]),
        "else_branch": helper.make_graph([spy], "else", [], [output]),
    }
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.insert(2, helper.make_node("If", ["yes"], ["taken"], **branches))


def local_function(model: onnx.ModelProto) -> None:
    opsets = [helper.make_opsetid("", 20)]
    twice = helper.make_function("", "Twice", ["x"], ["y"], [helper.make_node("Add", ["x", "x"], ["y"])], opsets)
    model.functions.append(twice)


def foreign_in_training(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    spy = helper.make_node("Spy", [], ["seen"], domain="com.example")
    training = model.training_info.add()
    training.initialization.CopyFrom(helper.make_graph([spy], "initialization", [], []))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (foreign, "com.example.Spy"),
        (foreign_in_branch, "com.example.Spy"),
        (foreign_in_training, "com.example.Spy"),
        (local_function, ".Twice"),
    ],
)
def test_operators_outside_the_standard_are_not_allowed(tmp_path: Path, change: Change, named: str) -> None:
    change(model := ours())
    assert error_of(model, tmp_path).endswith(f": operators outside the ONNX standard ({named}) are not allowed")


def make_external(tensor: TensorProto) -> TensorProto:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")
    return tensor


def in_initializer(model: onnx.ModelProto) -> None:
    make_external(model.graph.initializer[0])


def in_constant(model: onnx.ModelProto) -> None:
    value = make_external(numpy_helper.from_array(FLOATS, "weight"))
    del model.graph.initializer[:]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["weight"], value=value))


def in_sparse_initializer(model: onnx.ModelProto) -> None:
    values = make_external(numpy_helper.from_array(FLOATS.ravel(), "weight"))
    indices = numpy_helper.from_array(np.arange(12), "weight_indices")
    del model.graph.initializer[:]
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 3]))


def in_branch(model: onnx.ModelProto) -> None:
    hidden = make_external(numpy_helper.from_array(FLOATS, "weight"))
    output = helper.make_tensor_value_info("seen", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Identity", ["weight"], ["seen"])], "a", [], [output], [hidden])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.insert(2, helper.make_node("If", ["yes"], ["taken"], then_branch=branch, else_branch=branch))


@pytest.mark.parametrize("change", [in_initializer, in_constant, in_sparse_initializer, in_branch])
def test_data_outside_the_file_are_not_allowed(tmp_path: Path, change: Change) -> None:
    (tmp_path / "secret.bin").write_bytes(FLOATS.tobytes())
    change(model := ours())
    assert error_of(model, tmp_path).endswith(": data outside the file (weight) are not allowed")


def with_metadata(name: str, value: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        helper.set_model_props(model, {**METADATA, name: value})

    return change


def with_spec(**fields: Any) -> Change:
    return with_metadata("spec", json.dumps(SPEC | fields))


def without(name: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        helper.set_model_props(model, {key: value for key, value in METADATA.items() if key != name})

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without("spec"), "in its metadata, there is no spec"),
        (without("unsure_below"), "in its metadata, there is no unsure_below"),
        (with_spec(opening=SPEC["opening"] | {"centre_ink": "true"}), "in its metadata, spec.opening.centre_ink: "),
        (with_spec(classes="even, odd"), "in its metadata, spec.classes: "),
        (with_spec(classes=[1, 2, 3]), "in its metadata, spec.classes.0: "),
        (with_spec(classes=["one"]), "in its metadata, spec.classes: "),
        (with_spec(kind="sound"), "in its metadata, spec.kind: "),
        (with_spec(dtype="float32"), "in its metadata, spec.dtype: "),
        (with_spec(shape=[2, 2]), "in its metadata, spec.shape"),
        (with_spec(shape=[1, 2, 0]), "in its metadata, spec.shape.2: "),
        (with_spec(mean=[float("nan")]), "in its metadata, spec.mean.0: "),
        (with_spec(std=[1.0, 1.0]), "std must have 1 planes for color grey, found 2"),
        (with_spec(opening=SPEC["opening"] | {"resize": "squeeze"}), "in its metadata, spec.opening.resize: "),
        (with_spec(opening=SPEC["opening"] | {"sharpen": True}), "in its metadata, spec.opening.sharpen: "),
        (with_spec(more=1), "in its metadata, spec.more: "),
        (with_metadata("spec", "image"), "in its metadata, spec"),
        (with_metadata("spec", "[" * 100_000), "in its metadata, spec"),
        (with_metadata("unsure_below", "often"), "could not convert string to float"),
        (with_metadata("unsure_below", "nan"), "unsure_below is nan, must be in 0..1"),
    ],
)
def test_metadata_must_be_those_of_an_export(tmp_path: Path, change: Change, reason: str) -> None:
    change(model := ours())
    message = error_of(model, tmp_path)
    assert "was not written by stage 'export' of this version: " in message
    assert reason in message


def image_of(kind: int, *shape: str | int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("image", kind, shape))

    return change


def renamed(model: onnx.ModelProto) -> None:
    model.graph.node[3].output[0] = model.graph.output[1].name = "scores"


def swapped(model: onnx.ModelProto) -> None:
    outputs = [*model.graph.output]
    del model.graph.output[:]
    model.graph.output.extend(reversed(outputs))


def flat(model: onnx.ModelProto) -> None:
    image_of(TensorProto.UINT8, "batch", 4)(model)


@pytest.mark.parametrize(
    "change",
    [
        renamed,
        swapped,
        flat,
        image_of(TensorProto.UINT8, 7, 1, 2, 2),
        image_of(TensorProto.UINT8, "batch", 1, "height", "width"),
        image_of(TensorProto.FLOAT, "batch", 1, 2, 2),
        with_spec(classes=["even", "odd"]),
        with_spec(shape=[1, 2, 3]),
    ],
    ids=["renamed", "swapped", "flat", "fixed batch", "open size", "floats", "classes", "shape"],
)
def test_inputs_and_outputs_must_be_those_of_the_spec(tmp_path: Path, change: Change) -> None:
    change(model := ours())
    assert "; its spec says image, uint8 [batch, 1, 2, " in error_of(model, tmp_path)


def without_node(model: onnx.ModelProto) -> None:
    del model.graph.node[1]


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "Flattn"


@pytest.mark.parametrize("change", [without_node, unknown_operator])
def test_the_graph_must_be_valid(tmp_path: Path, change: Change) -> None:
    change(model := ours())
    assert "is not a valid ONNX file: " in error_of(model, tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x08", b"not ONNX", ours().SerializeToString()[:-40]])
def test_other_bytes_are_an_error(tmp_path: Path, content: bytes) -> None:
    assert "is not a valid ONNX file: " in error_of(content, tmp_path)


def test_a_file_must_not_be_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_model, "MAX_BYTES", 100)
    assert error_of(bytes(101), tmp_path).endswith(" has 101 bytes, allowed: at most 100")


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "endless").symlink_to("/dev/zero")
    for path, reason in (
        (tmp_path, "is not a file"),
        (tmp_path / "endless", "is not a file"),
        (tmp_path / "a", "not found"),
    ):
        with pytest.raises(UserError, match=f"^{path} {reason}$"):
            OnnxModel(path)
