"""Save and load the trained model as one file: the weights, and everything needed to use them.

Shape suffixes: N images, C planes, H x W pixels, K classes.
"""

import io
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from stages.core.artifacts import replacing
from stages.core.errors import UserError
from stages.core.models import build_model
from stages.core.params import Recipe, Section, Sha256, Share


class Manifest(Section):
    """Describe a model, without its weights."""

    format: Literal[3]  # earlier formats held fewer fields, or other networks of the same shapes
    recipe: str
    settings: Recipe
    dataset: str
    classes: list[str]
    image_shape: tuple[int, int, int]  # C, H, W
    centre_ink: bool  # how a picture of another size becomes an image; see `fit` in serving/images.py
    mean: float  # pixel x in 0..255 enters as (x / 255 - mean) / std
    std: float
    data_sha256: Sha256  # of the tensors and their summary, as stage normalize wrote them
    trained_on: str  # processes, device, precision and version of torch
    epoch: int  # the one of the lowest validation loss
    temperature: Annotated[float, Field(gt=0)]  # divides the network's logits
    unsure_below: Share  # a confidence, chosen on the validation split
    unsure_by: Literal["risk", "coverage"]  # the target in params.yaml that decided `unsure_below`


class Calibrated(nn.Module):
    """Divide a network's logits by the temperature that makes their softmax as confident as it is accurate."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, images_NCHW: Tensor) -> Tensor:
        logits_NK: Tensor = self.network(images_NCHW)
        return logits_NK / self.temperature


def build(manifest: Manifest) -> Calibrated:
    network = build_model(manifest.settings.model, manifest.image_shape, len(manifest.classes))
    return Calibrated(network, manifest.temperature)


def save_checkpoint(path: Path, manifest: Manifest, weights: dict[str, Tensor]) -> None:
    """Save the manifest and the weights of the network, which are those of `Calibrated.network`."""
    buffer = io.BytesIO()  # Torch does not distinguish a full disk from other errors.
    torch.save({"manifest": manifest.model_dump(), "weights": weights}, buffer)
    with replacing(path) as partial:
        partial.write_bytes(buffer.getbuffer())


def load_checkpoint(path: Path) -> tuple[Calibrated, Manifest]:
    """Return the calibrated model in evaluation mode on the CPU, and its manifest.

    Raises `UserError` when the file is not one that `save_checkpoint` wrote.
    """
    with path.open("rb") as file:
        try:
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
            manifest = Manifest.model_validate(content["manifest"])
            model = build(manifest)
            model.network.load_state_dict(content["weights"])
        except Exception as error:  # Torch and pickle raise all kinds of exceptions for other bytes.
            raise UserError(f"{path} is no checkpoint of this pipeline: {error}") from error
    for name, weight in model.network.state_dict().items():
        if not weight.isfinite().all():
            raise UserError(f"{path}: weight '{name}' holds values that are not finite")
    return model.eval(), manifest
