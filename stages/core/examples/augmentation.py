"""Augment training images at random without changing their class, a batch at a time on its device.

Shape suffixes: N images, C planes, H x W = P pixels, B surfaces, K knots.
"""

from collections.abc import Callable
from functools import cache
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.core.examples.config import Augmentation
from stages.core.machine.device import full_float32

KNOTS = 5  # of the elastic displacement, each way


def augment(
    images_NCHW: Tensor,
    config: Augmentation,
    generator: torch.Generator,
    rank: int = 0,
    world_size: int = 1,
    *,
    neighbour: bool = False,
) -> Tensor:
    """Change each raw image by random amounts: geometry first, then colors, then an erased square.

    `generator` is on the images' device. The images are slice `rank` of a global batch that is `world_size` times as
    large. Random draws are made for the whole batch, so results do not depend on the number of processes. With
    `neighbour`, the first image is the one before the slice, for `mixing`; it is changed as in its own slice.
    """
    if not (is_geometric(config) or config.flip or config.color or config.erase):
        return images_NCHW
    count = len(images_NCHW) - neighbour
    total, device = world_size * count, images_NCHW.device
    mine = slots(rank, count, total, device) if neighbour else slice(rank * count, (rank + 1) * count)

    def uniform() -> Tensor:
        """Return a random number in -1..1 for each image."""
        return 2 * torch.rand(total, generator=generator, device=device)[mine] - 1

    def normal(*shape: int) -> Tensor:
        """Return random numbers from a normal distribution for each image."""
        return torch.randn((total, *shape), generator=generator, device=device)[mine]

    changed_NCHW = images_NCHW.float()
    if is_geometric(config):
        changed_NCHW = move(changed_NCHW, config, uniform, normal)
    if config.flip:
        mirrored_N111 = (uniform() < 2 * config.flip - 1).view(-1, 1, 1, 1)
        changed_NCHW = torch.where(mirrored_N111, changed_NCHW.flip(3), changed_NCHW)
    if config.color:
        changed_NCHW = recolor(changed_NCHW, config.color, uniform)
    if config.erase:
        changed_NCHW = erase(changed_NCHW, config.erase, uniform)
    return changed_NCHW


def slots(rank: int, count: int, total: int, device: torch.device) -> Tensor:
    """Return the places in the global batch of the images of slice `rank` and, first, of the one before it.

    The last image of the batch comes before the first one.
    """
    return torch.arange(rank * count - 1, (rank + 1) * count, device=device) % total


def is_geometric(config: Augmentation) -> bool:
    """Return whether the recipe moves pixels in any other way than by mirroring them."""
    amounts = (config.shift, config.rotation, config.scale, config.shear, config.elastic)
    return any(amounts) or is_cropping(config)


def is_cropping(config: Augmentation) -> bool:
    return 0 < config.crop < 1


def move(
    images_NCHW: Tensor, config: Augmentation, uniform: Callable[[], Tensor], normal: Callable[..., Tensor]
) -> Tensor:
    """Rotate, scale, shear, bend, shift and crop each image by random amounts; border pixels fill the gaps.

    The elastic displacement is drawn from a normal distribution on a coarse grid and interpolated bicubically, as in
    Ronneberger et al. 2015 (arXiv 1505.04597).
    """
    _, _, height, width = images_NCHW.shape
    device = images_NCHW.device

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
        knots_N2K = normal(2, KNOTS**2)
    if is_cropping(config):
        with full_float32():
            weights_N2B = weights_N2B @ crop(config.crop, uniform)
    if config.elastic:
        weights_N2B = torch.cat([weights_N2B, knots_N2K * (config.elastic * pixel(height, width, device))], dim=2)
        surfaces_BHW = torch.cat([surfaces_BHW, elastic_surfaces(height, width, device)])
    with full_float32():  # Lower precision is too coarse for image coordinates.
        grid_N2P = weights_N2B @ surfaces_BHW.flatten(1)
    grid_NHW2 = grid_N2P.transpose(1, 2).view(-1, height, width, 2)
    return F.grid_sample(images_NCHW, grid_NHW2, padding_mode="border", align_corners=False)


def crop(smallest: float, uniform: Callable[[], Tensor]) -> Tensor:
    """Return matrices [N, 3, 3] that map coordinates in a random crop, in -1..1, to coordinates in the image.

    The area is uniform in `smallest`..1 and the aspect ratio, relative to the image's own, log-uniform in 3/4..4/3, as
    in the GoogLeNet of Szegedy et al. 2014 (arXiv 1409.4842) and torchvision's RandomResizedCrop. Torchvision draws
    again if a crop is wider or higher than the image. Here the longer side is cut to the image's, because the number
    of draws must not depend on their values.
    """
    area_N = 1 - (1 - smallest) * (uniform() + 1) / 2
    ratio_N = (uniform() * log(4 / 3)).exp()
    wide_N, high_N = (area_N * ratio_N).sqrt().clamp(max=1), (area_N / ratio_N).sqrt().clamp(max=1)
    right_N, down_N = (1 - wide_N) * uniform(), (1 - high_N) * uniform()
    zero_N, one_N = torch.zeros_like(wide_N), torch.ones_like(wide_N)
    return torch.stack([wide_N, zero_N, right_N, zero_N, high_N, down_N, zero_N, zero_N, one_N], dim=1).view(-1, 3, 3)


def recolor(images_NCHW: Tensor, strength: float, uniform: Callable[[], Tensor]) -> Tensor:
    """Multiply brightness, contrast and saturation by factors that are uniform in 1 - strength..1 + strength.

    They are torchvision's ColorJitter in a fixed order: a factor of 0 would leave black, the image's mean grey, or the
    grey of each pixel. Only images of three planes have a saturation. Values are clamped to 0..255.
    """
    factors = [(1 + strength * uniform()).view(-1, 1, 1, 1) for _ in range(3 if images_NCHW.shape[1] == 3 else 2)]
    bright_NCHW = images_NCHW * factors[0]
    changed_NCHW = torch.lerp(grey(bright_NCHW).mean((2, 3), keepdim=True), bright_NCHW, factors[1])
    if len(factors) == 3:
        changed_NCHW = torch.lerp(grey(changed_NCHW), changed_NCHW, factors[2])
    return changed_NCHW.clamp(0, 255)


def grey(images_NCHW: Tensor) -> Tensor:
    """Return the luma [N, 1, H, W] of three planes of red, green and blue (ITU-R BT.601), else the planes' mean."""
    if images_NCHW.shape[1] != 3:
        return images_NCHW.mean(1, keepdim=True)
    red_N1HW, green_N1HW, blue_N1HW = images_NCHW.split(1, dim=1)
    return 0.299 * red_N1HW + 0.587 * green_N1HW + 0.114 * blue_N1HW


def erase(images_NCHW: Tensor, share: float, uniform: Callable[[], Tensor]) -> Tensor:
    """Fill a square of this share of the area, centred on a random pixel, with the mean of each plane.

    This is cutout (DeVries & Taylor 2017, arXiv 1708.04552): a square of a fixed size that may reach beyond the border,
    so the network also sees images that are nearly whole. Random erasing (Zhong et al. 2017, arXiv 1708.04896) draws
    the size as well.
    """
    _, _, height, width = images_NCHW.shape
    side = max(1, round((share * height * width) ** 0.5))

    def covered(length: int) -> Tensor:
        """Return which rows, or columns, the square covers, bool [N, length]."""
        start_N1 = ((uniform() + 1) / 2 * length).floor()[:, None] - side // 2
        places = torch.arange(length, device=images_NCHW.device)
        return (places >= start_N1) & (places < start_N1 + side)

    square_N1HW = (covered(height)[:, :, None] & covered(width)[:, None, :])[:, None]
    return torch.where(square_N1HW, images_NCHW.mean((2, 3), keepdim=True), images_NCHW)


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
