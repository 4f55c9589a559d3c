"""Build VGG networks."""

import torch
from torch import nn

from stages.core.nets.config import VggConfig
from stages.core.nets.sizes import check_smallest


def vgg(config: VggConfig, shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return torchvision's VGG (Simonyan & Zisserman 2014, arXiv 1409.1556).

    Its head is replaced by global average pooling and a linear layer.
    """
    check_smallest(config.name, "layers", shape, 2 ** config.layers.count("M"))
    from torchvision.models.vgg import VGG, make_layers  # noqa: PLC0415  # Importing it takes seconds.

    features = make_layers(list(config.layers), batch_norm=True)
    features[0] = nn.Conv2d(shape[0], features[0].out_channels, 3, padding=1)
    with torch.device("meta"):  # Its classifier of 120 million weights is replaced.
        network = VGG(features, num_classes, init_weights=False)
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    *_, fan_in = (width for width in config.layers if isinstance(width, int))
    network.classifier = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(fan_in, num_classes))
    return network
