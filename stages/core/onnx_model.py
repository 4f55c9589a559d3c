"""The exported file in use: ONNX Runtime on the CPU, after the file was checked. PyTorch is not needed for it.

Shape suffixes: N images, C planes, H x W pixels, K classes.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from google.protobuf.message import DecodeError, Message

from stages.core.errors import UserError

MAX_BYTES = 1 << 30
DETAILS = Path("artifacts/details")
METRICS = Path("artifacts/metrics")
Found = TypeVar("Found", bound=Message)
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
        centre_ink: whether pictures of another size are scaled and centred by their ink; see `serving.images.fit`.
        operators: how many nodes there are of each kind.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        """Check and load `path`, to run on so many threads (0: one for each core); `UserError` where it is refused."""
        if not path.is_file():
            raise UserError(f"{path} is no file" if path.exists() else f"{path} not found")
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
            self.metadata: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
            signature = describe(self.session.get_inputs()), describe(self.session.get_outputs())
        except Exception as error:  # its exceptions have no common base class
            raise UserError(f"{path} does not load in ONNX Runtime: {error}") from error
        self.sha256 = hashlib.sha256(content).hexdigest()
        try:
            self.classes, self.unsure_below, self.centre_ink = read_metadata(self.metadata)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path} was not written by stage 'export' of this version: in its metadata, {error}"
            ) from None
        self.image_shape = read_shape(*signature, len(self.classes), path)

    def run(self, images_NCHW: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Logits [N, K] and probabilities [N, K] for raw pixels 0..255, white on black."""
        logits_NK, probabilities_NK = self.session.run(None, {"image": images_NCHW})
        return logits_NK, probabilities_NK


def is_proven(model: OnnxModel, details: Path) -> bool:
    """Return whether stage `parity` has recorded in `details` that this very file computes what was evaluated."""
    try:
        report = json.loads((details / "parity.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    match report:
        case {"proven": True, "made_from": {"onnx": model.sha256}}:
            return True
        case _:
            return False


def describe(values: list[Any]) -> list[Any]:
    return [(value.name, value.type, value.shape) for value in values]


def read_shape(inputs: list[Any], outputs: list[Any], num_classes: int, path: Path) -> tuple[int, int, int]:
    """C, H, W of the images; `UserError` where the file takes or gives anything else than an export does."""
    match inputs, outputs:
        case (
            [("image", "tensor(uint8)", [str(), int(planes), int(height), int(width)])],
            [
                ("logits", "tensor(float)", [str(), int(logits)]),
                ("probabilities", "tensor(float)", [str(), int(probabilities)]),
            ],
        ) if logits == probabilities == num_classes:
            return planes, height, width
    allowed = f"image, uint8 [batch, C, H, W] to logits and probabilities, float [batch, {num_classes}]"
    raise UserError(f"{path} maps {inputs} to {outputs}; allowed is {allowed}")


def read_metadata(metadata: dict[str, str]) -> tuple[list[str], float, bool]:
    """Return `classes`, `unsure_below` and `centre_ink`; raise `ValueError` if one is missing or not allowed."""
    if lacking := [name for name in ("classes", "unsure_below", "centre_ink") if name not in metadata]:
        raise ValueError(f"there is no {' and no '.join(lacking)}")
    classes, unsure_below = json.loads(metadata["classes"]), float(metadata["unsure_below"])
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("classes is no list of names")
    if not 0 <= unsure_below <= 1:
        raise ValueError(f"unsure_below is {unsure_below}, allowed is 0..1")
    if (found := metadata["centre_ink"]) not in ("true", "false"):
        raise ValueError(f"centre_ink is {found!r}, allowed are 'true' and 'false'")
    return classes, unsure_below, found == "true"


def check(content: bytes, path: Path) -> dict[str, int]:
    """Count the operators of an ONNX file; `UserError` where it is no valid, self-contained, standard one.

    Operators of other domains can be code of their own, external data another file anywhere on this machine.
    """
    try:
        model = onnx.load_model_from_string(content)
        external = sorted({tensor.name for tensor in find(model, onnx.TensorProto) if is_external(tensor)})
        if external:
            raise UserError(f"{path}: data outside of the file ({', '.join(external[:3])}) are not allowed")
        onnx.checker.check_model(model, full_check=True)
    except (
        DecodeError,
        UnicodeDecodeError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as error:
        raise UserError(f"{path} is no valid ONNX file: {[*str(error).strip().splitlines(), 'empty'][0]}") from None
    nodes = list(find(model, onnx.NodeProto))
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in nodes if node.domain not in STANDARD})
    if foreign or model.functions:
        named = foreign or [f"{function.domain}.{function.name}" for function in model.functions]
        raise UserError(f"{path}: operators outside of the ONNX standard ({', '.join(named)}) are not allowed")
    counts: dict[str, int] = {}
    for node in nodes:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def find(message: Message, kind: type[Found]) -> Iterator[Found]:
    """Every message of this kind, wherever it hides: in branches, loop bodies, attributes, functions, training."""
    if isinstance(message, kind):
        yield message
    for field, value in message.ListFields():
        if field.message_type:
            for inner in value if isinstance(value, Sequence) else [value]:
                yield from find(inner, kind)


def is_external(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL or bool(tensor.external_data)
