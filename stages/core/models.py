"""Networks that recipes name. Each maps images float32 [N, 1, H, W] to logits [N, K]."""

from itertools import pairwise
from math import prod

from torch import nn

from stages.core import params
from stages.core.errors import UserError


def build_model(
    config: params.Mlp | params.ConvNet, image_shape: tuple[int, int, int], num_classes: int
) -> nn.Sequential:
    """A fresh network for images of `image_shape` (C, H, W), initialized from torch's global generator."""
    match config:
        case params.Mlp(hidden=hidden):
            return mlp([prod(image_shape), *hidden, num_classes])
        case params.ConvNet(channels=channels):
            return convnet(channels, image_shape, num_classes)


def mlp(widths: list[int]) -> nn.Sequential:
    """Linear layers of the given widths, a ReLU after each but the last."""
    layers: list[nn.Module] = [nn.Flatten()]
    for wide, narrow in pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convnet(channels: list[int], image_shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    """Per entry of `channels`: convolution (5x5 the first, then 3x3), max-pool by 2, batch norm, ReLU; then one linear.

    Pooling before the norm leaves it a quarter of the pixels to work on.
    """
    depth, (planes, height, width) = len(channels), image_shape
    if min(height, width) >> depth == 0:
        raise UserError(f"a convnet of {depth} blocks needs images of {2**depth}x{2**depth}, found {height}x{width}")
    layers: list[nn.Module] = []
    for block, (fan_in, fan_out) in enumerate(pairwise([planes, *channels])):
        kernel = 3 if block else 5
        layers += [
            nn.Conv2d(fan_in, fan_out, kernel, padding="same", bias=False),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(fan_out),
            nn.ReLU(),
        ]
    features = channels[-1] * (height >> depth) * (width >> depth)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, num_classes))
