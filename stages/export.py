"""Write the trained model as one ONNX file that takes raw inputs.

Reads artifacts/model/.
Writes artifacts/onnx/model.onnx: one input, named after the kind of the examples, uint8 [batch, *shape]; outputs
`logits` and `probabilities`, float32 [batch, classes]. The normalization and the calibration are inside.
Fails when the model is damaged or the exported graph does not pass ONNX's checker.
"""

import warnings

import onnx
import torch
from torch import Tensor, nn

from stages.core.config.params import load_params
from stages.core.files import layout
from stages.core.files.atomic import replacing
from stages.core.files.checksums import sha256
from stages.core.files.errors import report_errors
from stages.core.files.exclusive import exclusive
from stages.core.machine.threads import sharing_cores
from stages.core.nets.checkpoint import load_model
from stages.core.nets.manifest import Manifest


class WithProbabilities(nn.Module):
    """Return the logits of a model and their softmax."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        logits_NK = self.model(inputs)
        return logits_NK, logits_NK.softmax(1)


def to_onnx(model: nn.Module, manifest: Manifest, opset: int) -> onnx.ModelProto:
    """Return the model as a checked ONNX graph with a dynamic batch, and with all that its users need as metadata."""
    spec = manifest.spec
    # With a batch of one, the exporter would treat the batch size as a constant.
    example = torch.zeros((2, *spec.shape), dtype=getattr(torch, spec.dtype))
    with torch.no_grad(), warnings.catch_warnings():
        # PyTorch's exporter warns about its own use of deprecated functions,
        warnings.simplefilter("ignore", (DeprecationWarning, FutureWarning))
        # and about an LSTM's weights, which the module holds twice.
        warnings.filterwarnings("ignore", r"The tensor attributes? .*_flat_weights", UserWarning)
        program = torch.onnx.export(
            WithProbabilities(model).eval(),
            (example,),
            input_names=[spec.kind],
            output_names=["logits", "probabilities"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    strip_debug_info(graph)
    metadata = {
        "recipe": manifest.recipe,
        "dataset": manifest.dataset,
        "spec": spec.model_dump_json(),
        "data_sha256": manifest.data_sha256,
        "unsure_below": repr(manifest.unsure_below),
    }
    onnx.helper.set_model_props(graph, metadata)
    onnx.checker.check_model(graph, full_check=True)
    # PyTorch's exporter silently makes the batch size constant if the model's code uses it as a number.
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param, "the exported batch is not dynamic"
    return graph


def strip_debug_info(graph: onnx.ModelProto) -> None:
    """Remove what the exporter records about this machine (paths, stack traces): equal models must be equal files."""
    for item in (*graph.graph.node, *graph.graph.value_info, *graph.graph.initializer):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    for value in (*graph.graph.input, *graph.graph.output):
        value.ClearField("metadata_props")
    graph.graph.ClearField("metadata_props")
    graph.graph.ClearField("doc_string")
    graph.ClearField("metadata_props")


def main() -> None:
    opset = load_params().export.opset
    layout.TRAIN.verify(layout.MODEL, layout.MANIFEST)
    model, manifest = load_model()
    graph = to_onnx(model, manifest, opset)
    graph.metadata_props.add(key="model_sha256", value=sha256(layout.MODEL))
    with replacing(layout.ONNX) as partial:
        partial.write_bytes(graph.SerializeToString(deterministic=True))
    layout.EXPORT.record(layout.ONNX)
    print(f"export: opset {opset}, {layout.ONNX.stat().st_size / 1e3:,.0f} kB, in {layout.ONNX}")


if __name__ == "__main__":
    with report_errors("export"), exclusive("export"), sharing_cores():
        main()
