"""Find pictures that look the same although their bytes differ, such as neighbouring frames of a video.

A picture's difference hash (Krawetz, "Kind of Like That", 2013) has 64 bits: of 8 rows of 9 grey levels, whether each
level is lower than the next one. Pictures whose hashes nearly agree are compared by the correlation of their thumbnails.
Shape suffixes: N pictures, C planes, H x W pixels.
"""

import numpy as np
from numpy.typing import NDArray

ROWS, COLUMNS = 8, 9
THUMBNAIL = 16  # pixels, the side of the pictures that are correlated
MAX_DISTANCE = 8  # bits in which the hashes may differ
MIN_CORRELATION = 0.95
BLOCK = 256  # pictures compared with all others at once, which takes 16 bytes for each pair


def hash_pictures(inputs_NCHW: NDArray[np.generic]) -> NDArray[np.uint64]:
    """Return the difference hash of each picture."""
    levels_NHW = shrink(inputs_NCHW, ROWS, COLUMNS)
    # Rounding keeps float32 sums in another order from flipping bits of even areas.
    bits_NP = (np.diff(levels_NHW.round(1), axis=2) > 0).reshape(len(levels_NHW), -1)
    return np.packbits(bits_NP, axis=1).view(">u8")[:, 0].astype(np.uint64)


def shrink(inputs_NCHW: NDArray[np.generic], height: int, width: int) -> NDArray[np.float32]:
    """Return the mean grey level of each of height x width areas, float32 [N, height, width]."""
    grey_NHW = inputs_NCHW.mean(axis=1, dtype=np.float32)
    down, across = (mean_of_areas(*sides) for sides in ((grey_NHW.shape[1], height), (grey_NHW.shape[2], width)))
    shrunk: NDArray[np.float32] = down @ grey_NHW @ across.T
    return shrunk


def mean_of_areas(pixels: int, areas: int) -> NDArray[np.float32]:
    """Return the matrix [areas, pixels] that averages equal parts of a row of pixels."""
    edges = np.linspace(0, pixels, areas + 1)
    starts = np.arange(pixels)
    overlap = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    return (np.clip(overlap, 0, None) * areas / pixels).astype(np.float32)


def find_alike(
    inputs: NDArray[np.generic], hashes: NDArray[np.uint64], others: NDArray[np.generic], other_hashes: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Return, for each of the `inputs`, the index of the most similar of the `others`; -1 if none looks the same."""
    nearest = np.full(len(inputs), -1)
    for start in range(0, len(inputs), BLOCK):
        distances = np.bitwise_count(hashes[start : start + BLOCK, None] ^ other_hashes)
        best = distances.argmin(axis=1)
        near = np.flatnonzero(distances[np.arange(len(best)), best] <= MAX_DISTANCE)
        if len(near):
            alike = correlation(inputs[start + near], others[best[near]]) >= MIN_CORRELATION
            nearest[start + near[alike]] = best[near[alike]]
    return nearest


def correlation(ours_NCHW: NDArray[np.generic], theirs_NCHW: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return the correlation coefficient of each pair of thumbnails; 0 if one of them is even."""
    ours, theirs = (
        shrink(pictures, THUMBNAIL, THUMBNAIL).reshape(len(pictures), -1) for pictures in (ours_NCHW, theirs_NCHW)
    )
    ours, theirs = ours - ours.mean(1, keepdims=True), theirs - theirs.mean(1, keepdims=True)
    scale = np.sqrt((ours**2).sum(1) * (theirs**2).sum(1))
    coefficients: NDArray[np.float32] = np.divide((ours * theirs).sum(1), scale, np.zeros_like(scale), where=scale > 0)
    return coefficients
