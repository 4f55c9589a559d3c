"""Find pictures that look the same although their bytes differ, such as neighbouring frames of a video.

Each picture is reduced to the mean grey levels of 8x8 areas. The picture whose levels correlate best with it is the one
that may look the same; whether it does is decided by the correlation of all pixels. All sums that choose between
pictures are sums of whole numbers, which are exact, so results do not depend on the machine or its number of threads.
Shape suffixes: N and M pictures, C planes, H x W pixels, D levels.
"""

from itertools import product
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

AREAS = 8  # in each direction
MIN_COARSE = 0.5  # correlation of the levels below which pixels are not compared
MIN_CORRELATION = 0.95  # of the pixels of pictures that look the same
MIN_SMOOTH = 0.985  # or of their pixels after smoothing, which hides a shift by a fraction of a pixel
NORM = 4000  # of a picture's levels; products of two stay below 2^24, up to which float32 holds each whole number
BLOCK = 512  # pictures handled at once
OTHERS = 16384  # pictures that a block is compared with at once, which takes 4 bytes for each pair


class Inputs(Protocol):
    """Return pictures [N, C, H, W] by their rows."""

    def __getitem__(self, rows_N: NDArray[np.int64], /) -> NDArray[np.generic]: ...


def hash_pictures(inputs_NCHW: NDArray[np.generic]) -> NDArray[np.uint64]:
    """Return the difference hash of each picture (Krawetz, "Kind of Like That", 2013).

    It has a bit for each of 8 rows of 9 levels except the last in a row: whether the next level is higher.
    """
    bits_NP = (np.diff(shrink(inputs_NCHW, AREAS, AREAS + 1), axis=2) > 0).reshape(len(inputs_NCHW), -1)
    return np.packbits(bits_NP, axis=1).view(">u8")[:, 0].astype(np.uint64)


def shrink(inputs_NCHW: NDArray[np.generic], height: int, width: int) -> NDArray[np.float64]:
    """Return the sum of the pixels in each of height x width areas, times height x width: whole numbers."""
    grey_NHW = inputs_NCHW.sum(axis=1, dtype=np.float64)
    down, across = weights(grey_NHW.shape[1], height), weights(grey_NHW.shape[2], width)
    shrunk: NDArray[np.float64] = down @ grey_NHW @ across.T
    return shrunk


def weights(pixels: int, areas: int) -> NDArray[np.float64]:
    """Return the overlap of equal areas with a row of pixels, [areas, pixels], in units of 1 / areas of a pixel."""
    starts_A, starts_P = np.arange(areas)[:, None] * pixels, np.arange(pixels) * areas
    overlap = np.minimum(starts_A + pixels, starts_P + areas) - np.maximum(starts_A, starts_P)
    return np.clip(overlap, 0, None).astype(np.float64)


def coarse_levels(inputs: Inputs, rows_N: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the levels [N, D] of these pictures as whole numbers without their mean; each row has the norm `NORM`."""
    levels_ND = np.zeros((len(rows_N), AREAS**2), np.float32)
    for start in range(0, len(rows_N), BLOCK):
        sums_ND = shrink(inputs[rows_N[start : start + BLOCK]], AREAS, AREAS).reshape(-1, AREAS**2)
        sums_ND = sums_ND * AREAS**2 - sums_ND.sum(axis=1, keepdims=True)
        norms_N1 = np.sqrt((sums_ND**2).sum(axis=1, keepdims=True))
        # A picture without contrast stays 0, which correlates with nothing.
        levels_ND[start : start + BLOCK] = np.rint(sums_ND * (NORM / np.maximum(norms_N1, 1)))
    return levels_ND


def find_alike(inputs: Inputs, rows_N: NDArray[np.int64], rows_M: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return, for each picture of `rows_N`, the row of the most similar one of `rows_M`; -1 if none looks the same.

    Both are rows of `inputs`.
    """
    levels_MD = coarse_levels(inputs, rows_M)
    found_N = np.full(len(rows_N), -1)
    for start in range(0, len(rows_N), BLOCK):
        block = rows_N[start : start + BLOCK]
        best_N, products_N = find_best(coarse_levels(inputs, block), levels_MD)
        near = np.flatnonzero(products_N >= MIN_COARSE * NORM**2)
        theirs = rows_M[best_N[near]]
        alike = look_alike(inputs[block[near]], inputs[theirs])
        found_N[start + near[alike]] = theirs[alike]
    return found_N


def find_best(
    levels_ND: NDArray[np.float32], levels_MD: NDArray[np.float32]
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return the index among M of the levels with the largest product, the first of several, and that product."""
    best_N, products_N = np.zeros(len(levels_ND), np.intp), np.zeros(len(levels_ND), np.float32)
    for start in range(0, len(levels_MD), OTHERS):
        products_NM = levels_ND @ levels_MD[start : start + OTHERS].T
        index_N = products_NM.argmax(axis=1)
        highest_N = products_NM[np.arange(len(index_N)), index_N]
        better_N = highest_N > products_N
        best_N[better_N], products_N[better_N] = start + index_N[better_N], highest_N[better_N]
    return best_N, products_N


def look_alike(ours_NCHW: NDArray[np.generic], theirs_NCHW: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Return whether the pictures of each pair look the same."""
    ours_NHW, theirs_NHW = (pictures.mean(axis=1, dtype=np.float32) for pictures in (ours_NCHW, theirs_NCHW))
    exact_N = correlation(ours_NHW, theirs_NHW) >= MIN_CORRELATION
    return exact_N | (correlation(smooth(ours_NHW), smooth(theirs_NHW)) >= MIN_SMOOTH)


def correlation(ours_NHW: NDArray[np.float32], theirs_NHW: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the correlation coefficient of the grey levels of each pair, the highest of shifts by up to a pixel.

    Black borders of both pictures do not count, because they would make all pictures of one format alike.
    """
    either_NHW = (ours_NHW > 0) | (theirs_NHW > 0)
    rows_NH1, columns_N1W = np.any(either_NHW, axis=2, keepdims=True), np.any(either_NHW, axis=1, keepdims=True)
    inside_NHW = np.logical_and(rows_NH1, columns_N1W)
    highest_N = np.zeros(len(ours_NHW), np.float32)
    parts = ((slice(None), slice(None)), (slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None)))
    for (down, down_too), (across, across_too) in product(parts, parts):
        counted = (inside_NHW[:, down, across] & inside_NHW[:, down_too, across_too]).astype(np.float32)
        ours = centred(ours_NHW[:, down, across], counted)
        theirs = centred(theirs_NHW[:, down_too, across_too], counted)
        scale = np.sqrt((ours**2).sum(axis=(1, 2)) * (theirs**2).sum(axis=(1, 2)))
        products = (ours * theirs).sum(axis=(1, 2))
        np.maximum(highest_N, np.divide(products, scale, np.zeros_like(scale), where=scale > 0), out=highest_N)
    return highest_N


def smooth(levels_NHW: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of each 3x3 levels."""
    if min(levels_NHW.shape[1:]) < 3:
        return levels_NHW
    sums_NHW = levels_NHW[:, :-2] + levels_NHW[:, 1:-1] + levels_NHW[:, 2:]
    sums_NHW = sums_NHW[..., :-2] + sums_NHW[..., 1:-1] + sums_NHW[..., 2:]
    return sums_NHW / np.float32(9)


def centred(levels_NHW: NDArray[np.float32], counted_NHW: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the levels minus the mean of those that count, which are 1 in `counted_NHW`; the others become 0."""
    count_N11 = np.maximum(counted_NHW.sum(axis=(1, 2), keepdims=True), 1)
    mean_N11 = (levels_NHW * counted_NHW).sum(axis=(1, 2), keepdims=True) / count_N11
    return (levels_NHW - mean_N11) * counted_NHW
