"""Build DenseNets."""

from torch import nn

from stages.core.nets.config import DenseNetConfig
from stages.core.nets.sizes import check_smallest


def densenet(config: DenseNetConfig, shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return torchvision's DenseNet (Huang et al. 2016, arXiv 1608.06993).

    Its 7x7 stem of stride 2 is replaced by a 3x3 convolution of stride 1.
    """
    # A max-pool that keeps a last odd pixel, and an average pool between blocks that drops it.
    check_smallest(config.name, "blocks", shape, 2 ** len(config.blocks) - 1)
    from torchvision.models.densenet import DenseNet  # noqa: PLC0415  # Importing it takes seconds.

    network = DenseNet(
        config.growth_rate, config.blocks, config.features, drop_rate=config.dropout, num_classes=num_classes
    )
    network.features.conv0 = nn.Conv2d(shape[0], config.features, 3, padding=1, bias=False)
    return network
