"""Find pictures that look the same although their bytes differ, such as neighbouring frames of a video.

Each picture is reduced to the mean grey levels of 8x8 areas. The picture whose levels correlate best with it is the one
that may look the same; whether it does is decided by a regression on all pixels. All sums that choose between pictures
are sums of whole numbers, which are exact, so results do not depend on the machine or its number of threads.
Shape suffixes: N and M pictures, C planes, H x W pixels, D levels.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

AREAS = 8  # in each direction
MIN_COARSE = 0.5  # correlation of the levels below which pixels are not compared
MIN_CORRELATION = 0.996  # of pictures that look the same; see `multiple_correlation`
RIDGE = 1e-3  # share of the variance
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

    def search(block: NDArray[np.int64]) -> NDArray[np.int64]:
        best, products = find_best(coarse_levels(inputs, block), levels_MD)
        near = np.flatnonzero(products >= MIN_COARSE * NORM**2)
        theirs = rows_M[best[near]]
        alike = look_alike(inputs[block[near]], inputs[theirs])
        found = np.full(len(block), -1)
        found[near[alike]] = theirs[alike]
        return found

    blocks = [rows_N[start : start + BLOCK] for start in range(0, len(rows_N), BLOCK)]
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # NumPy releases Python's lock while it computes.
        return np.concatenate([np.empty(0, np.int64), *threads.map(search, blocks)])


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
    """Return whether the pictures of each pair look the same; those of less than 7 pixels in a direction never do."""
    if min(ours_NCHW.shape[2:]) < 7:
        return np.zeros(len(ours_NCHW), np.bool_)
    ours_NHW, theirs_NHW = (pictures.mean(axis=1, dtype=np.float32) for pictures in (ours_NCHW, theirs_NCHW))
    # Without smoothing, the details of a photo that is shifted and then shrunk differ too much.
    return multiple_correlation(smooth(smooth(ours_NHW)), smooth(smooth(theirs_NHW))) >= MIN_CORRELATION


def smooth(levels_NHW: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the binomially weighted mean of each 3x3 levels, one level less at each border."""
    sums_NHW = levels_NHW[:, :-2] + 2 * levels_NHW[:, 1:-1] + levels_NHW[:, 2:]
    sums_NHW = sums_NHW[..., :-2] + 2 * sums_NHW[..., 1:-1] + sums_NHW[..., 2:]
    return sums_NHW / np.float32(16)


def multiple_correlation(ours_NHW: NDArray[np.float32], theirs_NHW: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return how well a linear function of each 3x3 pixels of theirs predicts ours: R, 0..1, of a linear regression.

    Such a function can shift by a fraction of a pixel, blur and sharpen, and change brightness and contrast. Black
    borders of both pictures do not count, because they would make all pictures of one format alike.
    """
    count, height, width = len(ours_NHW), ours_NHW.shape[1] - 2, ours_NHW.shape[2] - 2
    either_NHW = (ours_NHW > 0) | (theirs_NHW > 0)
    rows_NH, columns_NW = inner(np.any(either_NHW, axis=2)), inner(np.any(either_NHW, axis=1))
    counted_NHW = rows_NH[:, :, None] & columns_NW[:, None, :]
    counted_N1P = counted_NHW.reshape(count, 1, height * width).astype(np.float32)
    ours_N1P = centred(ours_NHW[:, 1:-1, 1:-1].reshape(counted_N1P.shape), counted_N1P)
    shifts = [theirs_NHW[:, down : down + height, across : across + width] for down, across in np.ndindex(3, 3)]
    theirs_N9P = centred(np.stack(shifts, axis=1).reshape(count, 9, height * width), counted_N1P)
    products_N99 = (theirs_N9P @ theirs_N9P.transpose(0, 2, 1)).astype(np.float64)
    products_N91 = (theirs_N9P @ ours_N1P.transpose(0, 2, 1)).astype(np.float64)
    # The ridge keeps the system solvable, and the weights small.
    ridge_N11 = RIDGE * np.trace(products_N99, axis1=1, axis2=2)[:, None, None] / 9 + 1e-6
    weights_N91 = np.linalg.solve(products_N99 + ridge_N11 * np.eye(9), products_N91)
    explained_N = (weights_N91 * products_N91).sum(axis=(1, 2))
    total_N = (ours_N1P**2).sum(axis=(1, 2), dtype=np.float64)
    return np.sqrt(np.divide(explained_N, total_N, np.zeros_like(total_N), where=total_N > 0))


def inner(used_NH: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which of these rows, the first and the last one aside, are used and lie between used ones."""
    return used_NH[:, :-2] & used_NH[:, 1:-1] & used_NH[:, 2:]


def centred(levels_NKP: NDArray[np.float32], counted_N1P: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the levels minus the mean of those that count, which are 1 in `counted_N1P`; the others become 0."""
    count_N11 = np.maximum(counted_N1P.sum(axis=2, keepdims=True), 1)
    mean_NK1 = (levels_NKP * counted_N1P).sum(axis=2, keepdims=True) / count_N11
    return (levels_NKP - mean_NK1) * counted_N1P
