"""Augment training images at random without changing their class, a batch at a time on its device.

Shape suffixes: N images, C planes, H x W = P pixels, B surfaces, K knots.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.core.examples.config import Augmentation
from stages.core.machine.device import full_float32

KNOTS = 5  # of the elastic displacement, each way


def augment(
    images_NCHW: Tensor, config: Augmentation, generator: torch.Generator, rank: int = 0, world_size: int = 1
) -> Tensor:
    """Rotate, scale, shear, bend and shift each raw image by random amounts; border pixels fill the gaps.

    `generator` is on the images' device. The images are slice `rank` of a global batch that is `world_size` times as
    large. Random draws are made for the whole batch, so results do not depend on the number of processes.

    The elastic displacement is drawn from a normal distribution on a coarse grid and interpolated bicubically, as in
    Ronneberger et al. 2015 (arXiv 1505.04597).
    """
    if not any(config.model_dump().values()):
        return images_NCHW
    count, _, height, width = images_NCHW.shape
    device, mine = images_NCHW.device, slice(rank * count, (rank + 1) * count)

    def uniform() -> Tensor:
        """Return a random number in -1..1 for each image."""
        return 2 * torch.rand(world_size * count, generator=generator, device=device)[mine] - 1

    def pixels() -> Tensor:
        """Return a random whole number of pixels, at most the shift either way, for each image."""
        return ((2 * config.shift + 1) * (uniform() + 1) / 2).floor() - config.shift

    # These map coordinates in the new image to coordinates in the old one, both in -1..1.
    angle_N, shear_N = (uniform() * degrees * torch.pi / 180 for degrees in (config.rotation, config.shear))
    zoom_N = 1 + config.scale * uniform()
    cos_N, sin_N, tan_N = angle_N.cos() / zoom_N, angle_N.sin() / zoom_N, shear_N.tan()
    right_N, down_N = 2 * pixels() / width, 2 * pixels() / height
    row_x = torch.stack([cos_N, (cos_N * tan_N - sin_N) * (height / width), right_N], dim=1)
    row_y = torch.stack([sin_N * (width / height), sin_N * tan_N + cos_N, down_N], dim=1)
    # A grid is a sum of surfaces, so one product makes the grids of all images, much faster than one by one.
    weights_N2B = torch.stack([row_x, row_y], dim=1)
    surfaces_BHW = affine_surfaces(height, width, device)
    if config.elastic:
        knots_N2K = torch.randn((world_size * count, 2, KNOTS**2), generator=generator, device=device)[mine]
        weights_N2B = torch.cat([weights_N2B, knots_N2K * (config.elastic * pixel(height, width, device))], dim=2)
        surfaces_BHW = torch.cat([surfaces_BHW, elastic_surfaces(height, width, device)])
    with full_float32():  # Lower precision is too coarse for image coordinates.
        grid_N2P = weights_N2B @ surfaces_BHW.flatten(1)
    grid_NHW2 = grid_N2P.transpose(1, 2).view(-1, height, width, 2)
    return F.grid_sample(images_NCHW.float(), grid_NHW2, padding_mode="border", align_corners=False)


@cache
def pixel(height: int, width: int, device: torch.device) -> Tensor:
    """Return the width and height of a pixel, float32 [2, 1], in an image that reaches from -1 to 1 each way."""
    return torch.tensor([[2 / width], [2 / height]], device=device)


@cache
def affine_surfaces(height: int, width: int, device: torch.device) -> Tensor:
    """Return x, y and 1 at each pixel's centre, float32 [3, H, W]; the image reaches from -1 to 1 each way."""
    identity = torch.eye(2, 3, device=device)[None]
    grid_HW2 = F.affine_grid(identity, [1, 1, height, width], align_corners=False)[0]
    return torch.stack([grid_HW2[..., 0], grid_HW2[..., 1], torch.ones_like(grid_HW2[..., 0])])


@cache
def elastic_surfaces(height: int, width: int, device: torch.device) -> Tensor:
    """Return each pixel's displacement when one knot moves by 1, interpolated bicubically, float32 [KNOTS**2, H, W]."""
    unit_K1KK = torch.eye(KNOTS**2, device=device).view(-1, 1, KNOTS, KNOTS)
    return F.interpolate(unit_K1KK, (height, width), mode="bicubic", align_corners=True)[:, 0]
