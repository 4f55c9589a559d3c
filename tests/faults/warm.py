"""Import what the stages import only while they run, by running it on next to nothing.

The server that the stages are forked from imports this module once. A stage that runs as another user cannot import
from an interpreter in somebody's home, and each fork would take seconds to import the same.
"""

import cProfile  # noqa: F401

import dvclive.live  # noqa: F401
import psutil  # noqa: F401
import torch

import stages.core.reporting.charts  # noqa: F401
from stages import export
from stages.core.examples.spec import Opening, Spec
from stages.core.nets.config import MlpConfig
from stages.core.nets.registry import build_model

spec = Spec(
    kind="image",
    shape=(1, 1, 1),
    dtype="uint8",
    classes=["a", "b"],
    mean=(0.0,),
    std=(1.0,),
    opening=Opening(color="grey", resize="fit", centre_ink=False, max_pixels=1),
)
model = build_model(MlpConfig(name="mlp", hidden=[1], dropout=0.0), spec)
torch.optim.SGD(model.parameters()).step()
torch.onnx.export(
    export.WithProbabilities(model).eval(),
    (torch.zeros((2, 1, 1, 1), dtype=torch.uint8),),
    dynamic_shapes=({0: torch.export.Dim("batch")},),
    dynamo=True,
    verbose=False,
)
