"""Divide the examples in a folder into chunks that fit into memory and are predicted together."""

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.folder.discovery import BROKEN, Source, map_npy
from stages.core.data.idx import read_parts

CHUNK_BYTES = 1 << 24  # If the examples in an array are large, fewer than the batch size are read at once.


class Chunk(NamedTuple):
    """Hold examples that are predicted together: files, consecutive examples of one array, or a single error."""

    number: int
    sources: list[Source]
    start: int = 0  # the first example's index in the array
    array: NDArray[np.uint8] | None = None  # some of an array's examples
    error: str | None = None


def read_chunks(sources: Iterator[Source], batch_size: int, skip: int) -> Iterator[Chunk]:
    """Yield all examples in order, without the first `skip` chunks.

    The boundaries of the chunks depend only on the sources and the batch size.
    """
    number, pictures = 0, list[Source]()
    for source in sources:
        if not source.examples:
            continue
        picture = source.kind == "picture" and not source.error
        if picture:
            pictures.append(source)
        if pictures and (len(pictures) == batch_size or not picture):
            if number >= skip:
                yield Chunk(number, pictures)
            number, pictures = number + 1, []
        if source.error:
            if number >= skip:
                yield Chunk(number, [source], error=source.error)
            number += 1
        elif not picture:
            step = max(1, min(batch_size, CHUNK_BYTES // prod(source.shape[1:])))
            yield from read_array(source, step, number, max(0, skip - number))
            number += -(-source.examples // step)
    if pictures and number >= skip:
        yield Chunk(number, pictures)


def read_array(source: Source, step: int, number: int, skip: int) -> Iterator[Chunk]:
    """Yield the chunks of an array, numbered from `number`, without the first `skip`; end at damage with an error."""
    idx = source.kind == "idx"
    parts = read_parts(source.path, source.shape, step, skip) if idx else read_npy(source, step, skip)
    for turn in range(skip, -(-source.examples // step)):
        chunk = Chunk(number + turn, [source], turn * step)
        try:
            part = next(parts, None)
        except BROKEN as error:
            yield chunk._replace(error=f"{source.name} is damaged: {error}")
            return
        if part is None:  # The damage lies before this chunk, so it has already been reported.
            return
        yield chunk._replace(array=part)


def read_npy(source: Source, step: int, skip: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the examples in a .npy file, `step` at a time, without the first `skip` parts."""
    for start in range(skip * step, source.examples, step):
        # The file is mapped again for each part, because pages that were read count as memory until it is unmapped.
        array = map_npy(source.path).reshape(source.shape)
        yield np.array(array[start : start + step], order="C")
