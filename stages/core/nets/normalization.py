"""Normalize raw inputs in the first layer of every model."""

import torch
from torch import Tensor, nn

from stages.core.examples.spec import Spec


class Normalization(nn.Module):
    """Map raw values x in 0..255, of any numeric type, to float32 (x / 255 - mean) / std of their plane."""

    scale: Tensor
    shift: Tensor

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        # They come from the spec, so checkpoints do not store them again.
        scale_C = torch.tensor([1 / (255 * std) for std in spec.std])
        shift_C = torch.tensor([-mean / std for mean, std in zip(spec.mean, spec.std, strict=True)])
        one_per_plane = [-1] + [1] * (len(spec.shape) - 1)
        self.register_buffer("scale", scale_C.view(one_per_plane), persistent=False)
        self.register_buffer("shift", shift_C.view(one_per_plane), persistent=False)

    def forward(self, raw: Tensor) -> Tensor:
        return torch.addcmul(self.shift, raw.float(), self.scale)
