"""The exported file in use: ONNX Runtime on the CPU, after the file was checked. PyTorch is not needed for it.

Shape suffixes: N images, C planes, H x W pixels, K classes.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from google.protobuf.message import DecodeError

from stages.core.errors import UserError

MAX_BYTES = 1 << 30
STANDARD = ("", "ai.onnx")  # two names of the domain whose operators the ONNX standard defines


class OnnxModel:
    """Answers of one exported file.

    Attributes:
        session: ONNX Runtime's.
        sha256: of the file.
        metadata: what stage `export` wrote into it.
        classes: the names of label 0, 1, ...
        image_shape: C, H, W.
        unsure_below: a prediction of less confidence (0..1) is unsure.
        operators: how many nodes there are of each kind.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        """Check and load `path`, to run on so many threads (0: one for each core); `UserError` where it is refused."""
        if (size := path.stat().st_size) > MAX_BYTES:
            raise UserError(f"{path} has {size:,} bytes, allowed are {MAX_BYTES:,}")
        content = path.read_bytes()  # once: the session gets what was checked
        self.operators = check(content, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # its threads would spin between the runs and slow whatever shares the cores
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base class
            raise UserError(f"{path} does not load in ONNX Runtime: {error}") from error
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.metadata: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        try:
            self.classes: list[str] = json.loads(self.metadata["classes"])
            self.unsure_below = float(self.metadata["unsure_below"])
        except (KeyError, ValueError) as error:
            raise UserError(f"{path} was not written by stage 'export': its metadata lack {error}") from None
        inputs, outputs = ([(x.name, x.type, x.shape[1:]) for x in side] for side in self.signature())
        width = len(self.classes)
        expected = [("logits", "tensor(float)", [width]), ("probabilities", "tensor(float)", [width])]
        if len(inputs) != 1 or inputs[0][:2] != ("image", "tensor(uint8)") or outputs != expected:
            raise UserError(f"{path} maps {inputs} to {outputs}; allowed is image, tensor(uint8) to {expected}")
        planes, height, width = inputs[0][2]
        self.image_shape: tuple[int, int, int] = (planes, height, width)

    def signature(self) -> tuple[list[Any], list[Any]]:
        return self.session.get_inputs(), self.session.get_outputs()

    def run(self, images_NCHW: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Logits [N, K] and probabilities [N, K] for raw pixels 0..255, white on black."""
        logits_NK, probabilities_NK = self.session.run(None, {"image": images_NCHW})
        return logits_NK, probabilities_NK


def check(content: bytes, path: Path) -> dict[str, int]:
    """Count the operators of an ONNX file; `UserError` where it is no valid, self-contained, standard one.

    Operators of other domains can be code of their own, external data another file anywhere on this machine.
    """
    try:
        model = onnx.load_model_from_string(content)
        external = [tensor.name for graph in graphs(model.graph) for tensor in graph.initializer if is_external(tensor)]
        if external:
            raise UserError(f"{path}: data outside of the file ({', '.join(external[:3])}) are not allowed")
        onnx.checker.check_model(model, full_check=True)
    except (DecodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UserError(f"{path} is no valid ONNX file: {str(error).strip().splitlines()[0]}") from None
    nodes = [node for graph in graphs(model.graph) for node in graph.node]
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in nodes if node.domain not in STANDARD})
    if foreign or model.functions:
        named = foreign or [f"{function.domain}.{function.name}" for function in model.functions]
        raise UserError(f"{path}: operators outside of the ONNX standard ({', '.join(named)}) are not allowed")
    counts: dict[str, int] = {}
    for node in nodes:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and, depth first, those in the attributes of its nodes (branches and loop bodies)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.ByteSize():
                    yield from graphs(inner)


def is_external(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL or bool(tensor.external_data)
