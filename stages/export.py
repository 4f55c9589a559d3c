"""Write the trained model as one ONNX file that takes raw pixels.

Reads artifacts/model/model.pt.
Writes artifacts/onnx/model.onnx: input `image` uint8 [batch, 1, H, W]; outputs `logits` and `probabilities`, float32
[batch, classes]. The normalization is inside.
Fails when the checkpoint is damaged or the exported graph does not pass ONNX's checker.
"""

import json
import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from stages.core.artifacts import alone, replacing
from stages.core.checkpoint import Manifest, load_checkpoint
from stages.core.datasets import normalize_pixels
from stages.core.errors import reported
from stages.core.params import load_params
from stages.core.sums import record, sha256, verify
from stages.core.threads import sharing_cores
from stages.core.timing import timed

MODEL = Path("artifacts/model/model.pt")
ONNX = Path("artifacts/onnx/model.onnx")


class Deployed(nn.Module):
    """The model with its pixels' normalization before it and the softmax behind it."""

    def __init__(self, model: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.model, self.mean, self.std = model, mean, std

    def forward(self, image_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        logits_NK = self.model(normalize_pixels(image_NCHW, self.mean, self.std))
        return logits_NK, logits_NK.softmax(1)


def to_onnx(model: nn.Module, manifest: Manifest, opset: int) -> onnx.ModelProto:
    """The deployed model as a checked ONNX graph with a dynamic batch, and in its metadata what is needed to use it."""
    deployed = Deployed(model, manifest.mean, manifest.std).eval()
    # two images, for a batch of one would be taken for a constant
    example = torch.zeros((2, *manifest.image_shape), dtype=torch.uint8)
    with torch.no_grad(), warnings.catch_warnings():
        # torch's exporter warns of its own use of deprecated functions
        warnings.simplefilter("ignore", (DeprecationWarning, FutureWarning))
        # and that an LSTM keeps its weights twice
        warnings.filterwarnings("ignore", r"The tensor attributes? .*_flat_weights", UserWarning)
        program = torch.onnx.export(
            deployed,
            (example,),
            input_names=["image"],
            output_names=["logits", "probabilities"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    strip_debug_info(graph)
    about = {
        "recipe": manifest.recipe,
        "dataset": manifest.dataset,
        "classes": json.dumps(manifest.classes),
        "centre_ink": json.dumps(manifest.centre_ink),
        "data_sha256": manifest.data_sha256,
        "unsure_below": repr(manifest.unsure_below),
    }
    onnx.helper.set_model_props(graph, about)
    onnx.checker.check_model(graph, full_check=True)
    # torch's exporter fixes it, in silence, where the model's code takes its size for a number
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param, "the exported batch is not dynamic"
    return graph


def strip_debug_info(graph: onnx.ModelProto) -> None:
    """Remove what the exporter notes of this machine (paths, stack traces), so that equal models are equal files."""
    for item in (*graph.graph.node, *graph.graph.value_info, *graph.graph.initializer):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    for value in (*graph.graph.input, *graph.graph.output):
        value.ClearField("metadata_props")
    graph.graph.ClearField("metadata_props")
    graph.graph.ClearField("doc_string")
    graph.ClearField("metadata_props")


def main() -> None:
    params = load_params()
    verify("train", MODEL)
    model, manifest = load_checkpoint(MODEL)
    graph = to_onnx(model, manifest, params.export.opset)
    graph.metadata_props.add(key="model_sha256", value=sha256(MODEL))
    with replacing(ONNX) as partial:
        partial.write_bytes(graph.SerializeToString(deterministic=True))
    record("export", ONNX)
    print(f"export: opset {params.export.opset}, {ONNX.stat().st_size / 1e3:,.0f} kB, in {ONNX}")


if __name__ == "__main__":
    with reported("export"), timed("export"), alone("export"), sharing_cores():
        main()
