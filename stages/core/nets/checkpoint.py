"""Save and load a trained model: its weights in one file, its manifest in another.

Shape suffixes: N examples, K classes.
"""

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.core.files.atomic import replacing
from stages.core.files.errors import UserError
from stages.core.files.layout import MANIFEST, MODEL
from stages.core.files.tables import write_json
from stages.core.nets.manifest import Manifest, read_manifest
from stages.core.nets.registry import build_model


class CalibratedModel(nn.Module):
    """Divide a model's logits by the temperature that makes their softmax as confident as it is accurate."""

    def __init__(self, model: nn.Sequential, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, inputs: Tensor) -> Tensor:
        logits_NK: Tensor = self.model(inputs)
        return logits_NK / self.temperature


def build_calibrated(manifest: Manifest) -> CalibratedModel:
    """Return the model that the manifest describes, with fresh weights."""
    return CalibratedModel(build_model(manifest.settings.model, manifest.spec), manifest.temperature)


def save_model(manifest: Manifest, weights: dict[str, Tensor], path: Path = MODEL) -> None:
    """Save the weights of `CalibratedModel.model` to `path`, and the manifest beside them."""
    buffer = io.BytesIO()  # PyTorch does not distinguish a full disk from other errors.
    torch.save(weights, buffer)
    with replacing(path) as partial:
        partial.write_bytes(buffer.getbuffer())
    write_json(manifest.model_dump(), path.with_name(MANIFEST.name))


def load_model(path: Path = MODEL) -> tuple[CalibratedModel, Manifest]:
    """Return the calibrated model in evaluation mode on the CPU, and its manifest.

    It maps raw inputs [N, *spec.shape] to logits float32 [N, K]. Raises `UserError` if the files are not what
    `save_model` wrote.
    """
    manifest = read_manifest(path.with_name(MANIFEST.name))
    calibrated = build_calibrated(manifest)
    # For some truncated files PyTorch would raise an `OSError` without a file name.
    saved = io.BytesIO(path.read_bytes())
    try:
        content: Any = torch.load(saved, map_location="cpu", weights_only=True)
        calibrated.model.load_state_dict(content)
    except Exception as error:  # PyTorch and pickle raise all kinds of exceptions for other bytes.
        raise UserError(f"{path} is not a model that this pipeline saved: {error}") from error
    for name, weight in calibrated.model.state_dict().items():
        if not weight.isfinite().all():
            raise UserError(f"{path}: weight '{name}' holds values that are not finite")
    return calibrated.eval(), manifest
