"""Test that a model is served only if it works."""

import hashlib
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from serving.live_model import load
from stages.core.deploy.onnx_model import OnnxModel
from stages.core.files.errors import UserError
from tests.conftest import wait_for
from tests.serving.client import SEVEN, picture
from tests.serving.conftest import DIGITS, Service, altered, failure, set_metadata, set_opening, set_spec


def break_weights(model: onnx.ModelProto) -> None:
    weights = model.graph.initializer[0]
    broken = np.full_like(numpy_helper.to_array(weights), np.nan)
    weights.CopyFrom(numpy_helper.from_array(broken, weights.name))


def make_sigmoid(model: onnx.ModelProto) -> None:
    (softmax,) = (node for node in model.graph.node if node.op_type == "Softmax")
    softmax.op_type = "Sigmoid"
    del softmax.attribute[:]


def mix_the_batch(model: onnx.ModelProto) -> None:
    """Subtract the mean over the batch from the logits."""
    nodes = [*model.graph.node]
    index, last = next((index, node) for index, node in enumerate(nodes) if "logits" in node.output)
    last.output[:] = ["own"]
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "batch_axis"))
    mean = onnx.helper.make_node("ReduceMean", ["own", "batch_axis"], ["mean"])
    mixed = onnx.helper.make_node("Sub", ["own", "mean"], ["logits"])
    del model.graph.node[:]
    model.graph.node.extend([*nodes[: index + 1], mean, mixed, *nodes[index + 1 :]])


def change_names(model: onnx.ModelProto) -> None:
    set_spec(classes=[*"abcdefghij"])(model)
    set_metadata(recipe="other")(model)


REJECTED = {
    "empty": (b"", "is not a valid ONNX file"),
    "half": (DIGITS.read_bytes()[:20_000], "is not a valid ONNX file"),
    "not a number": (altered(break_weights), "not every image gets a finite logit"),
    "no probabilities": (altered(make_sigmoid), "its probabilities are not the softmax of its logits"),
    "mixed": (altered(mix_the_batch), "an image alone gets another answer than in a batch"),
    "no metadata": (altered(lambda model: model.ClearField("metadata_props")), "was not written by stage 'export'"),
    "other classes": (
        altered(set_spec(classes=["0", "1"])),
        "its spec says image, uint8 [batch, 1, 28, 28] to logits and probabilities, float [batch, 2]",
    ),
    "other planes": (altered(set_spec(shape=[3, 28, 28])), "shape must have 1 planes for color grey, found 3"),
    "other planes than the graph": (
        altered(
            lambda model: (
                set_spec(shape=[3, 28, 28], mean=[0.5] * 3, std=[0.5] * 3)(model),
                set_opening(color="rgb", centre_ink=False)(model),
            )
        ),
        "its spec says image, uint8 [batch, 3, 28, 28] to logits",
    ),
    "an unknown setting": (altered(set_opening(sharpen=True)), "spec.opening.sharpen: Extra inputs are not permitted"),
    "an unknown resize": (altered(set_opening(resize="tile")), "spec.opening.resize: Input should be 'fit', 'crop' or"),
    "an unknown color": (altered(set_opening(color="cmyk")), "spec.opening.color: Input should be 'grey' or 'rgb'"),
    "no list of classes": (altered(set_spec(classes=5)), "spec.classes: Input should be a valid array"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_a_model_that_does_not_work_is_rejected(tmp_path: Path, case: str) -> None:
    content, reason = REJECTED[case]
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError) as rejected:
        load(path)
    assert str(rejected.value).startswith(f"{path} ")
    assert reason in str(rejected.value)


@pytest.mark.slow
def test_a_new_model_is_served_under_load_and_a_bad_one_is_not(own_service: Service) -> None:
    old = OnnxModel(DIGITS).sha256
    answers: list[tuple[int, str]] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=own_service.url) as client:
            while not stop.is_set():
                content = client.post("/predict", content=picture(SEVEN), headers={"Content-Type": "image/png"})
                (prediction,) = content.json()["predictions"]
                answers.append((content.status_code, content.json()["model"] + prediction["label"]))

    def health() -> Any:
        return own_service.client.get("/health").json()

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        assert (health()["status"], health()["model"], health()["rejected"]) == ("ok", old, None)
        own_service.model.unlink()
        wait_for(lambda: health()["rejected"] == "artifacts/onnx/model.onnx is missing", 60, "a report of that")
        for content, reason in REJECTED.values():
            own_service.replace_model(content)
            wait_for(lambda reason=reason: reason in (health()["rejected"] or ""), 60, reason)  # type: ignore[misc]
            assert (health()["status"], health()["model"]) == ("model rejected", old)
            assert reason in own_service.output()
        content = altered(change_names)
        new = hashlib.sha256(content).hexdigest()
        own_service.replace_model(content)
        wait_for(lambda: health()["model"] == new, 60, "the new model")
        assert (health()["status"], health()["rejected"]) == ("ok", None)
        assert 'recipe="other"' in own_service.client.get("/metrics").text
        assert 'recipe="convnet"' not in own_service.client.get("/metrics").text
        time.sleep(0.2)
    finally:
        stop.set()
        for client in clients:
            client.join()
    assert set(answers) == {(200, f"{old}7"), (200, f"{new}h")}
    assert f"model {new[:12]} is served" in own_service.output()


def test_no_model(tmp_path: Path) -> None:
    missing = "artifacts/onnx/model.onnx not found: run the pipeline first, with `make run`"
    assert failure(tmp_path) == f"serving: error: {missing}\n"
    path = tmp_path / "artifacts/onnx/model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(REJECTED["not a number"][0])
    expected = "artifacts/onnx/model.onnx does not work: not every image gets a finite logit for each class"
    assert failure(tmp_path) == f"serving: error: {expected}\n"
