"""Build recurrent networks.

Shape suffixes: N images, C planes, H x W pixels, T steps of a sequence, D features.
"""

from torch import Tensor, nn

from stages.core.nets.config import RecurrentConfig


class Recurrent(nn.Module):
    """Read an image row by row with an LSTM or a GRU, and classify the last output with a linear layer."""

    def __init__(self, config: RecurrentConfig, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        planes, _, width = shape
        kind = nn.LSTM if config.name == "lstm" else nn.GRU
        between = config.dropout if config.layers > 1 else 0.0
        self.rnn = kind(planes * width, config.hidden, config.layers, batch_first=True, dropout=between)
        self.head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(config.hidden, num_classes))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        outputs_NTD, _ = self.rnn(images_NCHW.transpose(1, 2).flatten(2))
        return self.head(outputs_NTD[:, -1])
