"""Normalize raw inputs in the first layer of every model."""

import torch
from torch import Tensor, nn

from stages.core.examples.spec import Spec


class Normalization(nn.Module):
    """Map raw values x in 0..255, of any numeric type, to float32 (x / 255 - mean) / std."""

    scale: Tensor
    shift: Tensor

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        # They come from the spec, so checkpoints do not store them again.
        self.register_buffer("scale", torch.tensor(1 / (255 * spec.std)), persistent=False)
        self.register_buffer("shift", torch.tensor(-spec.mean / spec.std), persistent=False)

    def forward(self, raw: Tensor) -> Tensor:
        return torch.addcmul(self.shift, raw.float(), self.scale)
