"""Build transformer encoders.

Shape suffixes: N images, C planes, H x W pixels, T steps of a sequence, D features.
"""

from math import gcd

import torch
from torch import Tensor, nn

from stages.core.nets.config import TransformerConfig
from stages.core.nets.sizes import check_divides


class Transformer(nn.Module):
    """Encode square patches, with a class token in front.

    The token is BERT's (Devlin et al. 2018, arXiv 1810.04805), the patches are those of Dosovitskiy et al. 2020, arXiv
    2010.11929.
    """

    def __init__(self, config: TransformerConfig, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        planes, height, width = shape
        check_divides(config.name, "patch", config.patch, shape, gcd(height, width))
        steps = 1 + height // config.patch * (width // config.patch)
        self.embed = nn.Conv2d(planes, config.dim, config.patch, stride=config.patch)
        self.token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.positions = nn.Parameter(0.02 * torch.randn(1, steps, config.dim))
        layer = nn.TransformerEncoderLayer(
            config.dim, config.heads, 4 * config.dim, config.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, config.layers, nn.LayerNorm(config.dim), enable_nested_tensor=False)
        self.head = nn.Linear(config.dim, num_classes)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        patches_NTD = self.embed(images_NCHW).flatten(2).transpose(1, 2)
        sequence_NTD = torch.cat([self.token.expand(patches_NTD.shape[0], -1, -1), patches_NTD], 1) + self.positions
        return self.head(self.encoder(sequence_NTD)[:, 0])
