"""Build small convolutional networks.

Shape suffixes: N images, C planes, H x W pixels, K classes.
"""

from torch import nn

from stages.core.nets.config import ConvNetConfig


def convnet(config: ConvNetConfig, shape: tuple[int, ...], num_classes: int) -> nn.Sequential:
    """Return blocks of convolutions (the first 5x5, the others 3x3), each with batch norm and ReLU, and a linear layer.

    The convolutions are unpadded, as in LeNet-5 (LeCun et al. 1998, doi 10.1109/5.726791). Each block but the last ends
    in a max-pool by 2; with `stem: stride`, the first convolution has stride 2 instead. With `head: max`, the last
    block ends in the maximum over all positions.
    """
    layers: list[nn.Module] = []
    planes, height, width = shape
    for block, widths in enumerate(config.channels):
        last = block == len(config.channels) - 1
        for index, fan_out in enumerate(widths):
            size, stride = (3, 1) if layers else (5, 1 if config.stem == "pool" else 2)
            layers.append(nn.Conv2d(planes, fan_out, size, stride, bias=False))
            height, width = ((side - size) // stride + 1 for side in (height, width))
            if index == len(widths) - 1:  # Pool before the norm, which then has a quarter of the pixels to process.
                if last and config.head == "max":
                    layers.append(nn.MaxPool2d((height, width)))
                    height, width = 1, 1
                elif not last and (block or config.stem == "pool"):
                    layers.append(nn.MaxPool2d(2))
                    height, width = height // 2, width // 2
            if height < 1 or width < 1:
                raise RuntimeError(f"no pixels are left after block {block + 1}")
            layers += [nn.BatchNorm2d(fan_out), nn.ReLU()]
            planes = fan_out
    head = [nn.Flatten(), nn.Dropout(config.dropout), nn.Linear(planes * height * width, num_classes)]
    return nn.Sequential(*layers, *head)
