"""Build ResNets."""

from torch import nn

from stages.core.nets.config import ResNetConfig


def resnet(config: ResNetConfig, shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return torchvision's ResNet of basic blocks (He et al. 2015, arXiv 1512.03385).

    Its stem, which has stride 4, is replaced by a 3x3 convolution of stride 2.
    """
    from torchvision.models.resnet import BasicBlock, ResNet  # noqa: PLC0415  # Importing it takes seconds.

    network = ResNet(BasicBlock, config.blocks, num_classes)
    network.conv1 = nn.Conv2d(shape[0], network.conv1.out_channels, 3, stride=2, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network
