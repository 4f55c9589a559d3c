"""Build WaveNets.

Shape suffixes: N images, C planes, H x W pixels, T steps of a sequence, D features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.core.nets.config import WaveNetConfig
from stages.core.nets.sizes import check_divides


class WaveNet(nn.Module):
    """Apply dilated causal convolutions to the pixels, row after row (van den Oord et al. 2016, arXiv 1609.03499).

    Each step is `stride` pixels. Dilations 1, 2, 4, ... give a receptive field of 2**layers steps. The skip outputs are
    summed over the layers and averaged over all steps.
    """

    def __init__(self, config: WaveNetConfig, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        planes, height, width = shape
        check_divides(config.name, "stride", config.stride, shape, height * width)
        channels = config.channels
        self.embed = nn.Conv1d(planes, channels, config.stride, stride=config.stride)
        self.dilations = [2**layer for layer in range(config.layers)]
        self.dilated = nn.ModuleList(nn.Conv1d(channels, 2 * channels, 2, dilation=step) for step in self.dilations)
        self.mix = nn.ModuleList(nn.Conv1d(channels, 2 * channels, 1) for _ in range(config.layers))
        self.head = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, num_classes))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        signal_NDT = self.embed(images_NCHW.flatten(2))
        skips_NDT = torch.zeros_like(signal_NDT)
        for dilation, dilated, mix in zip(self.dilations, self.dilated, self.mix, strict=True):
            past_NDT = F.pad(signal_NDT, (dilation, 0))
            filter_NDT, gate_NDT = dilated(past_NDT).chunk(2, dim=1)
            residual_NDT, skip_NDT = mix(filter_NDT.tanh() * gate_NDT.sigmoid()).chunk(2, dim=1)
            signal_NDT, skips_NDT = signal_NDT + residual_NDT, skips_NDT + skip_NDT
        return self.head(self.dropout(skips_NDT.relu().mean(2)))
