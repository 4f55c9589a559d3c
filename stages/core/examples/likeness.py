"""Find pictures that look the same although their bytes differ, such as neighbouring frames of a video.

A picture's difference hash (Krawetz, "Kind of Like That", 2013) has 64 bits: of 8 rows of 9 grey levels, whether each
level is lower than the next one. Pictures whose hashes nearly agree are compared by the correlation of their pixels.
Shape suffixes: N pictures, C planes, H x W pixels.
"""

from itertools import product
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

ROWS, COLUMNS = 8, 9
MAX_DISTANCE = 10  # bits in which the hashes may differ
MIN_CORRELATION = 0.95
BLOCK = 256  # pictures compared with the others at once, which takes 9 bytes for each pair


class Inputs(Protocol):
    """Return pictures [N, C, H, W] by their rows."""

    def __getitem__(self, rows_N: NDArray[np.int64], /) -> NDArray[np.generic]: ...


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
    hashes_N: NDArray[np.uint64],
    others_M: NDArray[np.uint64],
    inputs: Inputs,
    rows_N: NDArray[np.int64],
    rows_M: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return, for each picture, the row in `inputs` of the most similar of the others; -1 if none looks the same.

    `rows_N` and `rows_M` are the rows in `inputs` of the pictures with these hashes.
    """
    # Hashes that differ in d bits have numbers of ones that differ by at most d, so only a range is compared.
    ones_M = np.bitwise_count(others_M)
    order_M = np.argsort(ones_M, kind="stable")
    others_M, rows_M, ones_M = others_M[order_M], rows_M[order_M], ones_M[order_M].astype(int)
    order_N = np.argsort(np.bitwise_count(hashes_N), kind="stable")
    nearest_N = np.full(len(hashes_N), -1)
    for start in range(0, len(order_N), BLOCK):
        block = order_N[start : start + BLOCK]
        ones = np.bitwise_count(hashes_N[block]).astype(int)
        low = int(np.searchsorted(ones_M, ones[0] - MAX_DISTANCE))
        high = int(np.searchsorted(ones_M, ones[-1] + MAX_DISTANCE, side="right"))
        if low == high:
            continue
        distances = np.bitwise_count(hashes_N[block, None] ^ others_M[low:high])
        best = distances.argmin(axis=1)
        near = np.flatnonzero(distances[np.arange(len(block)), best] <= MAX_DISTANCE)
        ours, theirs = rows_N[block[near]], rows_M[low + best[near]]
        alike = correlation(inputs[ours], inputs[theirs]) >= MIN_CORRELATION
        nearest_N[block[near[alike]]] = theirs[alike]
    return nearest_N


def correlation(ours_NCHW: NDArray[np.generic], theirs_NCHW: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return the correlation coefficient of the grey levels of each pair, the highest of shifts by up to a pixel."""
    ours_NHW, theirs_NHW = (pictures.mean(axis=1, dtype=np.float32) for pictures in (ours_NCHW, theirs_NCHW))
    highest_N = np.zeros(len(ours_NHW), np.float32)
    parts = {0: (slice(None), slice(None)), 1: (slice(1, None), slice(None, -1)), -1: (slice(None, -1), slice(1, None))}
    for (down, down_too), (across, across_too) in product(parts.values(), parts.values()):
        ours, theirs = (
            picture - picture.mean(axis=(1, 2), keepdims=True)
            for picture in (ours_NHW[:, down, across], theirs_NHW[:, down_too, across_too])
        )
        scale = np.sqrt((ours**2).sum(axis=(1, 2)) * (theirs**2).sum(axis=(1, 2)))
        products = (ours * theirs).sum(axis=(1, 2))
        np.maximum(highest_N, np.divide(products, scale, np.zeros_like(scale), where=scale > 0), out=highest_N)
    return highest_N
