"""Check an exported file and run it in ONNX Runtime on the CPU, without PyTorch.

Shape suffixes: N examples, K classes.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray
from pydantic import ValidationError

from stages.core.examples.spec import Spec
from stages.core.files.errors import UserError
from stages.core.files.layout import PARITY_DETAILS

MAX_BYTES = 1 << 30
Found = TypeVar("Found", bound=Message)
STANDARD = ("", "ai.onnx")  # two names of the domain whose operators the ONNX standard defines


class OnnxModel:
    """Classify examples with one exported file.

    Attributes:
        session: the session of ONNX Runtime.
        sha256: the checksum of the file.
        metadata: the properties that stage `export` wrote into the file.
        spec: the inputs that the model takes, and its classes.
        unsure_below: the confidence (0..1) below which a prediction is unsure.
        operators: the number of nodes of each kind.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        """Check and load `path`, to run on `threads` threads (0: one for each core).

        Raises `UserError` if the file is not one that stage `export` of this version wrote.
        """
        if not path.is_file():
            raise UserError(f"{path} is not a file" if path.exists() else f"{path} not found")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise UserError(f"{path} has {size:,} bytes, allowed: at most {MAX_BYTES:,}")
        content = path.read_bytes()  # It is read once, so the session gets the bytes that were checked.
        self.operators = check(content, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Otherwise its threads would spin between runs and slow down whatever shares the cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            self.metadata: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
            inputs, outputs = signature(self.session.get_inputs()), signature(self.session.get_outputs())
        except Exception as error:  # Its exceptions have no common base class.
            raise UserError(f"{path} does not load in ONNX Runtime: {error}") from error
        self.sha256 = hashlib.sha256(content).hexdigest()
        try:
            self.spec, self.unsure_below = read_metadata(self.metadata)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path} was not written by stage 'export' of this version: in its metadata, {error}"
            ) from None
        check_signature(inputs, outputs, self.spec, path)

    def run(self, inputs: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return logits [N, K] and probabilities [N, K] for raw inputs [N, *spec.shape]."""
        logits_NK, probabilities_NK = self.session.run(None, {self.spec.kind: inputs})
        return logits_NK, probabilities_NK


def is_proven(model: OnnxModel, details: Path = PARITY_DETAILS) -> bool:
    """Return whether stage `parity` has recorded in `details` that this very file matches the evaluated model."""
    try:
        report = json.loads(details.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    match report:
        case {"proven": True, "made_from": {"onnx": model.sha256}}:
            return True
        case _:
            return False


def signature(values: list[Any]) -> list[Any]:
    """Return the name, type and shape of each input or output of a session."""
    return [(value.name, value.type, value.shape) for value in values]


def check_signature(inputs: list[Any], outputs: list[Any], spec: Spec, path: Path) -> None:
    """Raise `UserError` unless the file has the inputs that its spec states, and the outputs of an export."""
    classes = len(spec.classes)
    match inputs, outputs:
        case (
            [(spec.kind, "tensor(uint8)", [str(), *shape])],
            [
                ("logits", "tensor(float)", [str(), int(logits)]),
                ("probabilities", "tensor(float)", [str(), int(probabilities)]),
            ],
        ) if shape == [*spec.shape] and logits == probabilities == classes:
            return
    allowed = f"{spec.kind}, uint8 [batch, {', '.join(map(str, spec.shape))}]"
    raise UserError(
        f"{path} maps {inputs} to {outputs}; its spec says {allowed} to logits and probabilities, float"
        f" [batch, {classes}]"
    )


def read_metadata(metadata: dict[str, str]) -> tuple[Spec, float]:
    """Return `spec` and `unsure_below`; raise `ValueError` if one is missing or invalid."""
    if missing := [name for name in ("spec", "unsure_below") if name not in metadata]:
        raise ValueError(f"there is no {' and no '.join(missing)}")
    try:
        spec = Spec.model_validate_json(metadata["spec"])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"spec.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    unsure_below = float(metadata["unsure_below"])
    if not 0 <= unsure_below <= 1:
        raise ValueError(f"unsure_below is {unsure_below}, must be in 0..1")
    return spec, unsure_below


def check(content: bytes, path: Path) -> dict[str, int]:
    """Count the operators of an ONNX file; raise `UserError` unless it is valid, self-contained and standard.

    Operators of other domains can be arbitrary code, and external data can be any file on this machine.
    """
    try:
        model = onnx.load_model_from_string(content)
        external = sorted({tensor.name for tensor in find_messages(model, onnx.TensorProto) if is_external(tensor)})
        if external:
            raise UserError(f"{path}: data outside the file ({', '.join(external[:3])}) are not allowed")
        onnx.checker.check_model(model, full_check=True)
    except (
        DecodeError,
        UnicodeDecodeError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as error:
        raise UserError(f"{path} is not a valid ONNX file: {[*str(error).strip().splitlines(), 'empty'][0]}") from None
    nodes = list(find_messages(model, onnx.NodeProto))
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in nodes if node.domain not in STANDARD})
    if foreign or model.functions:
        named = foreign or [f"{function.domain}.{function.name}" for function in model.functions]
        raise UserError(f"{path}: operators outside the ONNX standard ({', '.join(named)}) are not allowed")
    counts: dict[str, int] = {}
    for node in nodes:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def find_messages(message: Message, kind: type[Found]) -> Iterator[Found]:
    """Yield every message of this kind, wherever it is: in branches, loop bodies, attributes, functions, training."""
    if isinstance(message, kind):
        yield message
    for field, value in message.ListFields():
        if field.message_type:
            for inner in value if isinstance(value, Sequence) else [value]:
                yield from find_messages(inner, kind)


def is_external(tensor: onnx.TensorProto) -> bool:
    """Return whether the tensor's data are in another file."""
    return tensor.data_location == onnx.TensorProto.EXTERNAL or bool(tensor.external_data)
