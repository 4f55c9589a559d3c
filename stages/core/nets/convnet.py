"""Build small convolutional networks.

Shape suffixes: N images, C planes, H x W pixels, K classes.
"""

import torch
from torch import Tensor, nn

from stages.core.nets.config import ConvNetConfig


def convnet(config: ConvNetConfig, shape: tuple[int, ...], num_classes: int) -> nn.Sequential:
    """Return blocks of convolutions (5x5 the first, then 3x3), each with batch norm and ReLU, and one linear layer.

    They are unpadded, like those of LeNet-5 (LeCun et al. 1998, doi 10.1109/5.726791). Each block but the last ends in
    a max-pool by 2; with `stem: stride`, the first convolution has stride 2 instead. With `head: max`, the last block
    ends in the maximum over all places.
    """
    layers: list[nn.Module] = []
    planes = shape[0]
    for block, widths in enumerate(config.channels):
        last = block == len(config.channels) - 1
        for index, fan_out in enumerate(widths):
            size, stride = (3, 1) if layers else (5, 1 if config.stem == "pool" else 2)
            layers.append(nn.Conv2d(planes, fan_out, size, stride, bias=False))
            if index == len(widths) - 1:  # Before the norm, which then has a quarter of the pixels to work on.
                if last and config.head == "max":
                    _, height, width = measure_output(nn.Sequential(*layers), shape)
                    layers.append(nn.MaxPool2d((height, width)))
                elif not last and (block or config.stem == "pool"):
                    layers.append(nn.MaxPool2d(2))
            layers += [nn.BatchNorm2d(fan_out), nn.ReLU()]
            planes = fan_out
    trunk = nn.Sequential(*layers, nn.Flatten())
    (fan_in,) = measure_output(trunk, shape)
    return trunk.extend([nn.Dropout(config.dropout), nn.Linear(fan_in, num_classes)])


def measure_output(model: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of one input's output; raise `RuntimeError` if the model does not take such an input."""
    with torch.no_grad():
        outputs_N: Tensor = model.eval()(torch.zeros((1, *shape)))
    return outputs_N.shape[1:]
