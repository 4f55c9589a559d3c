"""Build small convolutional networks.

Shape suffixes: N images, C planes, H x W pixels, K classes.
"""

from torch import nn

from stages.core.nets.config import ConvNetConfig
from stages.core.nets.sizes import check_smallest


def convnet(config: ConvNetConfig, shape: tuple[int, ...], num_classes: int) -> nn.Sequential:
    """Return blocks of convolutions (the first 5x5, the others 3x3), each with batch norm and ReLU, and a linear layer.

    With `padding: valid`, the convolutions are unpadded, as in LeNet-5 (LeCun et al. 1998, doi 10.1109/5.726791); with
    `same`, zeros are added, so deeper networks take small images. Each block but the last ends in a max-pool by 2; with
    `stem: stride`, the first convolution has stride 2 instead. With `head: max`, the last block ends in the maximum
    over all positions.
    """
    check_smallest(config.name, "channels", shape, smallest_side(config))
    layers: list[nn.Module] = []
    planes, height, width = shape
    for block, widths in enumerate(config.channels):
        last = block == len(config.channels) - 1
        for index, fan_out in enumerate(widths):
            size, stride = (3, 1) if layers else (5, 1 if config.stem == "pool" else 2)
            padding = size // 2 if config.padding == "same" else 0
            layers.append(nn.Conv2d(planes, fan_out, size, stride, padding, bias=False))
            height, width = ((side + 2 * padding - size) // stride + 1 for side in (height, width))
            if index == len(widths) - 1:  # Pool before the norm, which then has a quarter of the pixels to process.
                if last and config.head == "max":
                    layers.append(nn.MaxPool2d((height, width)))
                    height, width = 1, 1
                elif not last and (block or config.stem == "pool"):
                    layers.append(nn.MaxPool2d(2))
                    height, width = height // 2, width // 2
            layers += [nn.BatchNorm2d(fan_out), nn.ReLU()]
            planes = fan_out
    head = [nn.Flatten(), nn.Dropout(config.dropout), nn.Linear(planes * height * width, num_classes)]
    return nn.Sequential(*layers, *head)


def smallest_side(config: ConvNetConfig) -> int:
    """Return the height, or width, of the images of which a single pixel reaches the classifier."""
    side, last = 1, len(config.channels) - 1
    for block in range(last, -1, -1):
        if block < last and (block or config.stem == "pool"):
            side *= 2
        for index in range(len(config.channels[block]) - 1, -1, -1):
            is_first = (block, index) == (0, 0)
            stride, lost = 2 if is_first and config.stem == "stride" else 1, 4 if is_first else 2
            side = (side - 1) * stride + 1 + (lost if config.padding == "valid" else 0)
    return side
