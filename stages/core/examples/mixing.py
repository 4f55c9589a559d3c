"""Mix each training image with the one before it in the batch, by mixup or CutMix.

Two images make one: inside a rectangle, the second one takes a share of each pixel. In mixup (Zhang et al. 2018, arXiv
1710.09412) the rectangle is the whole image; in CutMix (Yun et al. 2019, arXiv 1905.04899) the share is 1. The loss is
that of both labels, weighted by how much of each image is there.

The order of an epoch is random, so an image's neighbour in the batch is as good a partner as any other. The partners
of a slice of the batch are its own images and the one before them, so a process has to load a single image more.

The amounts are drawn on the CPU for a whole epoch and are an input of each step, because CUDA graphs cannot draw from a
Beta distribution.

Shape suffixes: N images, M = N + 1 images with the one before them, C planes, H x W pixels, S steps.
"""

import numpy as np
import torch
from torch import Tensor

from stages.core.examples.config import Augmentation


def is_mixing(config: Augmentation) -> bool:
    return bool(config.mixup or config.cutmix)


def draw_mixes(config: Augmentation, seed: int, steps: int, batch_size: int, shape: tuple[int, ...]) -> Tensor:
    """Return how each image of an epoch is mixed, float32 [S, N, 5]; `shape` is that of an image, (C, H, W).

    The numbers are the top, bottom, left and right of a rectangle in pixels, and the partner's share inside.
    """
    _, height, width = shape
    generator, size_SN = np.random.default_rng(seed), (steps, batch_size)
    is_cutmix_S1 = generator.random((steps, 1)) < (1.0 if not config.mixup else 0.5 if config.cutmix else 0.0)
    alpha_S1 = np.where(is_cutmix_S1, config.cutmix, config.mixup)
    partner_SN = generator.beta(alpha_S1, alpha_S1, size_SN)
    half_SN = np.sqrt(partner_SN) / 2  # of the rectangle's sides, as shares of the image's

    def bounds(length: int) -> list[np.ndarray]:
        """Return where the rectangle begins and ends in one direction; it is cut off at the image's border."""
        centre_SN = generator.random(size_SN)
        ends = ((centre_SN - half_SN, 0), (centre_SN + half_SN, length))
        return [np.where(is_cutmix_S1, (end * length).round().clip(0, length), whole) for end, whole in ends]

    share_SN = np.where(is_cutmix_S1, 1.0, partner_SN)
    return torch.from_numpy(np.stack([*bounds(height), *bounds(width), share_SN], axis=-1).astype(np.float32))


def mix(images_MCHW: Tensor, mixes_N5: Tensor) -> tuple[Tensor, Tensor]:
    """Return each image but the first, mixed with the one before it, and the share of its own label, float32 [N]."""
    height, width = images_MCHW.shape[2:]
    top_N1, bottom_N1, left_N1, right_N1, share_N1 = mixes_N5.split(1, dim=1)
    rows, columns = (torch.arange(length, device=mixes_N5.device) for length in (height, width))
    inside_NH, inside_NW = (rows >= top_N1) & (rows < bottom_N1), (columns >= left_N1) & (columns < right_N1)
    share_NHW = (inside_NH[:, :, None] & inside_NW[:, None, :]) * share_N1[:, :, None]
    images_MCHW = images_MCHW.float()
    mixed_NCHW = torch.lerp(images_MCHW[1:], images_MCHW[:-1], share_NHW[:, None])
    area_N1 = (bottom_N1 - top_N1) * (right_N1 - left_N1) / (height * width)
    return mixed_NCHW, (1 - area_N1 * share_N1)[:, 0]
