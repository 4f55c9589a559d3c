"""Predict chunks of examples in threads, a few chunks ahead of the one that is needed next.

Shape suffixes: N examples, K classes.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import polars as pl
from numpy.typing import NDArray

from serving.folder.chunks import Chunk
from serving.folder.discovery import Source
from stages.core.deploy.onnx_model import OnnxModel
from stages.core.examples import image, picture
from stages.core.examples.spec import Spec
from stages.core.files.errors import UserError


def predict_ahead(
    pool: ThreadPoolExecutor, model: OnnxModel, chunks: Iterator[Chunk], limit: int
) -> Iterator[tuple[Chunk, pl.DataFrame]]:
    """Yield the predictions in the order of the chunks, holding at most `limit` chunks at a time."""
    waiting: deque[tuple[Chunk, Future[pl.DataFrame]]] = deque()
    for chunk in chunks:
        waiting.append((chunk, pool.submit(predict, model, chunk)))
        if len(waiting) >= limit:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()


def predict(model: OnnxModel, chunk: Chunk) -> pl.DataFrame:
    """Return the rows for a chunk, with the columns of `results.schema`."""
    inputs, errors = read_inputs(chunk, model.spec)
    good_N = np.array([error is None for error in errors])
    classes = model.spec.classes
    probabilities_NK = np.full((len(errors), len(classes)), np.nan, np.float32)
    if len(inputs):
        probabilities_NK[good_N] = model.run(inputs)[1]
    if chunk.array is None:
        names, indices_N = [source.name for source in chunk.sources], np.full(len(errors), chunk.start)
    else:
        names, indices_N = [chunk.sources[0].name] * len(errors), np.arange(len(errors)) + chunk.start
    best_N = np.nan_to_num(probabilities_NK).argmax(axis=1)
    labels = [classes[best] if good else None for best, good in zip(best_N, good_N, strict=True)]
    confidence = pl.Series(probabilities_NK.max(axis=1)).fill_nan(None)
    return pl.DataFrame({
        "file": names,
        "index": indices_N,
        "label": pl.Series(labels, dtype=pl.String),
        "confidence": confidence,
        **{
            f"probability_{name}": pl.Series(column_N).fill_nan(None)
            for name, column_N in zip(classes, np.ascontiguousarray(probabilities_NK.T), strict=True)
        },
        "unsure": confidence < model.unsure_below,
        "error": pl.Series(errors, dtype=pl.String),
    })  # fmt: skip


def read_inputs(chunk: Chunk, spec: Spec) -> tuple[NDArray[np.uint8], list[str | None]]:
    """Return the inputs for the examples that can be predicted, and for each example of the chunk its error or None."""
    if chunk.error:
        return np.empty((0, *spec.shape), np.uint8), [chunk.error]
    if chunk.array is not None:
        inputs, blank_N = image.fit(chunk.array, spec.shape, spec.opening)
        name = chunk.sources[0].name
        errors = [
            f"image {index} of {name} {image.BLANK}" if blank else None
            for index, blank in enumerate(blank_N, chunk.start)
        ]
        return inputs[~blank_N], errors
    found = [read_file(source, spec) for source in chunk.sources]
    readable = [each for each in found if not isinstance(each, str)]
    return np.array(readable, np.uint8), [each if isinstance(each, str) else None for each in found]


def read_file(source: Source, spec: Spec) -> NDArray[np.uint8] | str:
    """Return the input for the model that a file yields, or its error."""
    try:
        limit = picture.BYTES_PER_PIXEL * spec.opening.max_pixels
        if (size := source.path.stat().st_size) > limit:
            raise UserError(f"{source.name} has {size:,} bytes, allowed: at most {limit:,}")
        return image.open_picture(source.path.read_bytes(), source.name, spec.shape, spec.opening)
    except (UserError, OSError) as error:
        return str(error)
