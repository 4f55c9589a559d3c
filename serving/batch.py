"""Predictions for all images under a folder, streamed: memory does not grow with their number.

Images are read in chunks, answered by threads a few chunks ahead, and written in parts; a run that was killed goes on
after its last part. Parts and results are kept under a key of the model's and the inputs' names, sizes and times.
Shape suffixes: N images, H x W pixels, K classes.
"""

import gzip
import hashlib
import json
import os
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import pandera.polars as pa
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from stages.core.deploy.onnx_model import OnnxModel, is_proven
from stages.core.examples.image import BLANK, FORMATS, MAX_PIXELS, SIGNATURES, decode, fit
from stages.core.files.atomic import remove, replacing
from stages.core.files.errors import UserError
from stages.core.files.exclusive import locked
from stages.core.files.tables import write_json, write_table

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
READ = f"{', '.join(FORMATS)}, IDX and .npy"
HIDDEN = ("__MACOSX", "Thumbs.db")  # macOS and Windows create these; names that begin with a dot count, too.
EXAMPLES = 3
MAX_BYTES = 8 * MAX_PIXELS  # of a picture's file: PNG has at most 8 bytes a pixel
MAX_BATCH = 65536
CHUNKS = 64  # of them make a part, what a killed run loses at most
CHUNK_PIXELS = 1 << 24  # of large images in an array fewer are read at once
BROKEN = (OSError, EOFError, ValueError, zlib.error)  # what reading an array can raise
AHEAD = 2  # chunks for each thread that are read and not yet answered


class Source(NamedTuple):
    """Hold a file and what was recognized in it; a file that cannot be read has an `error` and becomes one row."""

    path: Path
    name: str
    kind: Literal["picture", "idx", "npy", "other", "hidden"]
    shape: tuple[int, ...] = ()  # of idx and npy: N, H, W and perhaps 3 colors
    error: str | None = None

    @property
    def images(self) -> int:
        if self.kind in ("idx", "npy"):
            return self.shape[0]
        return int(self.kind == "picture")


class Chunk(NamedTuple):
    """Hold images that are answered together: files, or consecutive images of one file, or one error."""

    number: int
    sources: list[Source]
    start: int = 0
    pixels: NDArray[np.uint8] | None = None  # [N, H, W] or [N, H, W, 3] of an array's images
    error: str | None = None


class Survey(NamedTuple):
    key: str  # changes with the model and with every file that is read
    images: int
    skipped: int  # files that hold no images
    examples: list[str]  # names of the first of these
    hidden: int  # hidden files and folders, each counted as one


class Summary(NamedTuple):
    table: Path
    images: int
    survey: Survey
    errors: int
    unsure: int
    by_class: dict[str, int]
    resumed: int  # images that were there already
    proven: bool  # whether the model is


def schema(classes: list[str]) -> pa.DataFrameSchema:
    """Return the schema of the table: one row per image, with its answer or its error."""
    share = pa.Check.in_range(0, 1)
    return pa.DataFrameSchema(
        {
            "file": pa.Column(pl.String),
            "index": pa.Column(pl.Int64, pa.Check.ge(0)),
            "label": pa.Column(pl.String, pa.Check.isin(classes), nullable=True),
            "confidence": pa.Column(pl.Float32, share, nullable=True),
            **{f"probability_{name}": pa.Column(pl.Float32, share, nullable=True) for name in classes},
            "unsure": pa.Column(pl.Boolean, nullable=True),
            "error": pa.Column(pl.String, nullable=True),
        },
        checks=pa.Check(
            lambda data: data.lazyframe.select(pl.col("error").is_null() == pl.col("label").is_not_null()),
            error="either a label or an error",
        ),
        strict=True,
        ordered=True,
    )


def sources_under(given: Path) -> Iterator[Source]:
    """Yield each regular file and each hidden file or folder, in a stable order, named relative to `given`."""
    if given.is_file():
        yield recognize(given, printable(given.name))
        return

    def give_up(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(given, onerror=give_up):
        hidden = {name for name in (*folders, *names) if name.startswith(".") or name in HIDDEN}
        folders[:] = sorted(set(folders) - hidden)
        for name in sorted({*names} | hidden):
            path = Path(folder, name)
            relative = printable(path.relative_to(given).as_posix())
            if name in hidden:
                yield Source(path, relative, "hidden")
            elif path.is_file():  # Pipes and dangling links are left out.
                yield recognize(path, relative)


def printable(name: str) -> str:
    """Return a file's name with the bytes that are not UTF-8 escaped, because a table cannot hold them."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def recognize(path: Path, name: str) -> Source:
    try:
        return recognize_content(path, name)
    except BROKEN as error:
        return Source(path, name, "picture", error=f"{name} cannot be read: {error}")


def recognize_content(path: Path, name: str) -> Source:
    """Recognize a file by its first bytes; the suffix only says what a damaged file was meant to be."""
    with path.open("rb") as file:
        magic = file.read(16)
    if SIGNATURES.match(magic):
        return Source(path, name, "picture")
    suffix = path.suffix.lower()
    if suffix == ".npy" or magic.startswith(b"\x93NUMPY"):
        array = load_array(path)
        shape = array.shape if array.ndim > 2 and array.shape[2:] != (3,) else (1, *array.shape)
        fits = len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)
        if array.dtype != np.uint8 or not fits or not 0 < np.prod(shape[1:]) <= 3 * MAX_PIXELS:
            raise ValueError(
                f"it holds {array.dtype} {[*array.shape]}; allowed are uint8 [H, W], [N, H, W], [H, W, 3] or"
                f" [N, H, W, 3] of at most {MAX_PIXELS:,} pixels an image"
            )
        return Source(path, name, "npy", shape)
    if magic.startswith((b"\x1f\x8b", b"\0\0\x08\x03")):
        return recognize_idx(path, name, zipped=magic.startswith(b"\x1f\x8b"))
    return Source(path, name, "picture" if suffix in PICTURES else "other")


def load_array(path: Path) -> NDArray[Any]:
    """Return a .npy file as a memory map; raise `ValueError` for any other file."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # its header is Python source, and is read as such
        raise ValueError(f"it is no .npy file: {error}") from error


def recognize_idx(path: Path, name: str, *, zipped: bool) -> Source:
    """Recognize IDX images, gzipped or not; any other gzip file counts as one without images."""
    with opened(path) as file:
        header = file.read(16)
    if not header.startswith(b"\0\0\x08\x03"):
        return Source(path, name, "other")
    if len(header) < 16:
        raise ValueError(f"it is truncated: {len(header)} bytes, the header alone takes 16")
    count, height, width = struct.unpack(">3I", header[4:])
    size = path.stat().st_size
    if not zipped and size != 16 + count * height * width:
        raise ValueError(f"it has {size:,} bytes, its header says {16 + count * height * width:,}")
    if not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"its images have {height} x {width} pixels, allowed are 1 to {MAX_PIXELS:,} in all")
    return Source(path, name, "idx", (count, height, width))


def opened(path: Path) -> BinaryIO:
    """Open an IDX file, unpacked if it is gzipped."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if zipped else path.open("rb")  # type: ignore[return-value]


def chunks_of(given: Path, batch_size: int, skip: int) -> Iterator[Chunk]:
    """Yield all images in order, without the first `skip` chunks; the borders depend on the sources alone."""
    number, pictures = 0, list[Source]()
    for source in sources_under(given):
        if not source.images:
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
            step = max(1, min(batch_size, CHUNK_PIXELS // int(np.prod(source.shape[1:]))))
            yield from slices(source, step, number, max(0, skip - number))
            number += -(-source.shape[0] // step)
    if pictures and number >= skip:
        yield Chunk(number, pictures)


def slices(source: Source, step: int, number: int, skip: int) -> Iterator[Chunk]:
    """Yield the chunks of an array, from `number` on; if it breaks off, the last one is the error."""
    count, *shape = source.shape
    turns = islice(enumerate(range(0, count, step), number), skip, None)
    if source.kind == "npy":
        for turn, start in turns:
            try:
                array = load_array(source.path).reshape(source.shape)
            except BROKEN as error:  # it is another one now
                yield Chunk(turn, [source], start, error=f"{source.name} is damaged: {error}")
                return
            yield Chunk(turn, [source], start, np.array(array[start : start + step]))
        return
    size = int(np.prod(shape))
    with opened(source.path) as file:
        try:
            if file.seek(16 + size * step * skip) < 16 + size * step * skip:
                return
        except BROKEN:
            return  # before this place, and so told already
        for turn, start in turns:
            wanted = size * min(step, count - start)
            try:
                content = file.read(wanted)
                if len(content) < wanted:
                    raise EOFError(f"it ends before image {start + len(content) // size:,} of {count:,}")
            except BROKEN as error:
                yield Chunk(turn, [source], start, error=f"{source.name} is damaged: {error}")
                return
            yield Chunk(turn, [source], start, np.frombuffer(content, np.uint8).reshape(-1, *shape))


def answer(model: OnnxModel, chunk: Chunk) -> pl.DataFrame:
    """Return the rows of a chunk."""
    _, height, width = model.spec.shape
    images: list[NDArray[np.uint8]] = []
    errors: list[str | None] = []
    if chunk.error:
        errors = [chunk.error]
    elif chunk.pixels is not None:
        images_NHW, blank_N = fit(to_grey(chunk.pixels), height, width, centre_ink=model.spec.centre_ink)
        images = list(images_NHW[~blank_N])
        name = chunk.sources[0].name
        errors = [
            f"image {index} of {name} {BLANK}" if blank else None for index, blank in enumerate(blank_N, chunk.start)
        ]
    else:
        for source in chunk.sources:
            try:
                if (size := source.path.stat().st_size) > MAX_BYTES:
                    raise UserError(f"{source.name} has {size:,} bytes, allowed are {MAX_BYTES:,}")
                grey_HW = decode(source.path.read_bytes(), source.name)
                (image_HW,), (blank,) = fit(grey_HW[None], height, width, centre_ink=model.spec.centre_ink)
                if blank:
                    raise UserError(f"{source.name} {BLANK}")
                images.append(image_HW)
                errors.append(None)
            except (UserError, OSError) as error:
                errors.append(str(error))
    good_N = np.array([error is None for error in errors])
    probabilities_NK = np.full((len(errors), len(model.spec.classes)), np.nan, np.float32)
    if images:
        probabilities_NK[good_N] = model.run(np.stack(images)[:, None])[1]
    if chunk.pixels is None:
        names, indices_N = [source.name for source in chunk.sources], np.full(len(errors), chunk.start)
    else:
        names, indices_N = [chunk.sources[0].name] * len(errors), np.arange(len(errors)) + chunk.start
    best_N = np.nan_to_num(probabilities_NK).argmax(axis=1)
    labels = [model.spec.classes[best] if good else None for best, good in zip(best_N, good_N, strict=True)]
    confidence = pl.Series(probabilities_NK.max(axis=1)).fill_nan(None)
    return pl.DataFrame({
        "file": names,
        "index": indices_N,
        "label": pl.Series(labels, dtype=pl.String),
        "confidence": confidence,
        **{
            f"probability_{name}": pl.Series(column_N).fill_nan(None)
            for name, column_N in zip(model.spec.classes, np.ascontiguousarray(probabilities_NK.T), strict=True)
        },
        "unsure": confidence < model.unsure_below,
        "error": pl.Series(errors, dtype=pl.String),
    })  # fmt: skip


def to_grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return grey levels [N, H, W] of these or of colors [N, H, W, 3], by the luma that `decode` takes."""
    if pixels.ndim == 3:
        return pixels
    count, height, width, colors = pixels.shape
    return np.asarray(Image.fromarray(pixels.reshape(-1, width, colors)).convert("L")).reshape(count, height, width)


def ahead(
    pool: ThreadPoolExecutor, model: OnnxModel, chunks: Iterator[Chunk], limit: int
) -> Iterator[tuple[Chunk, pl.DataFrame]]:
    """Yield the answers in the order of the chunks, of which at most `limit` are held."""
    waiting: deque[tuple[Chunk, Future[pl.DataFrame]]] = deque()
    for chunk in chunks:
        waiting.append((chunk, pool.submit(answer, model, chunk)))
        if len(waiting) >= limit:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()


def survey(given: Path, model: OnnxModel, batch_size: int) -> Survey:
    """Count what is in `given`, and compute the key of the results of this model on it."""
    key = hashlib.sha256(f"{model.sha256} {batch_size} {CHUNKS}\n".encode())
    images = skipped = hidden = 0
    examples: list[str] = []
    for source in sources_under(given):
        if source.kind == "hidden":
            hidden += 1
        elif source.kind == "other":
            skipped += 1
            examples += [source.name] if skipped <= EXAMPLES else []
        else:
            status = source.path.stat()
            key.update(f"{source.name} {source.kind} {source.error} {status.st_size} {status.st_mtime_ns}\n".encode())
            images += source.images
    return Survey(key.hexdigest(), images, skipped, examples, hidden)


def predict_folder(
    given: Path, output: Path, model_path: Path, batch_size: int, on_progress: Callable[[int, int], object]
) -> Summary:
    """Write predictions.parquet and .csv to `output`; `on_progress` hears how many images are done, and of how many."""
    if not 1 <= batch_size <= MAX_BATCH:
        raise UserError(f"batch size {batch_size}: allowed are 1 to {MAX_BATCH:,}")
    if not given.exists():
        raise UserError(f"{given} not found: give a folder, or a file of {READ}")
    if not model_path.exists():
        raise UserError(f"{model_path} not found: `make run` makes it, --model names another one")
    model, mine = OnnxModel(model_path, threads=1), printable(str(given.resolve()))
    try:
        with locked(output / ".lock"):
            found = survey(given, model, batch_size)
            key, images = found.key, found.images
            if images == 0:
                raise UserError(f"{given} holds no images; {describe_skipped(found)}; supported are {READ}")
            parts = output / f"parts-{key[:16]}"
            done, finished = output / "predictions.json", 0
            known = read_known(done)
            if (of := known.get("of", mine)) != mine:
                raise UserError(f"{output} holds the predictions of {of}; --output names another folder")
            if known.get("key") == key and all(done.with_suffix(suffix).exists() for suffix in (".parquet", ".csv")):
                finished = images
            else:
                finished = write_parts(given, parts, model, batch_size, lambda n: on_progress(n, images))
                write_tables(parts, output)
                write_json({"of": mine, "model": model.sha256, **found._asdict()}, done)
                for stale in output.glob("parts-*"):
                    remove(stale)
            on_progress(images, images)
    except BlockingIOError:
        raise UserError(f"another run is writing to {output}; --output names another folder") from None
    return summarize(output / "predictions.parquet", found, finished, is_proven(model))


def describe_skipped(found: Survey) -> str:
    """Return a phrase that counts the files that were not read and names the first of them."""
    examples = ", ".join(found.examples) + (", ..." if found.skipped > len(found.examples) else "")
    named = f" ({examples})" if examples else ""
    return f"{found.skipped:,} other files skipped{named}, {found.hidden:,} hidden files or folders"


def read_known(path: Path) -> dict[str, Any]:
    """Return what a finished run has noted; nothing if that is missing or damaged, and then the work is done again."""
    try:
        known = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def write_parts(given: Path, parts: Path, model: OnnxModel, batch_size: int, on_rows: Callable[[int], object]) -> int:
    """Write the parts that are not there yet; return how many rows were there already."""
    there = sorted(parts.glob("*.parquet"))
    try:
        rows = resumed = int(pl.scan_parquet(there).select(pl.len()).collect().item()) if there else 0
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{parts} is damaged: {error}; remove it to begin anew") from None
    on_rows(rows)
    part = 1 + int(there[-1].stem) if there else 0
    tables: list[pl.DataFrame] = []
    threads = os.cpu_count() or 1

    def finish() -> None:
        if tables:
            write_table(pl.concat(tables), parts / f"{part:06}.parquet", schema(model.spec.classes))
            tables.clear()

    with ThreadPoolExecutor(threads) as pool:
        for chunk, table in ahead(pool, model, chunks_of(given, batch_size, part * CHUNKS), AHEAD * threads):
            if chunk.number // CHUNKS > part:
                finish()
                part = chunk.number // CHUNKS
            tables.append(table)
            rows += len(table)
            on_rows(rows)
    finish()
    return resumed


def write_tables(parts: Path, output: Path) -> None:
    table = pl.scan_parquet(sorted(parts.glob("*.parquet")))
    with replacing(output / "predictions.parquet") as partial:
        table.sink_parquet(partial)
    with replacing(output / "predictions.csv") as partial:
        table.sink_csv(partial)


def summarize(table: Path, found: Survey, resumed: int, proven: bool) -> Summary:
    rows = pl.scan_parquet(table)
    counts = rows.select(pl.len(), pl.col("error").count().alias("errors"), pl.col("unsure").sum()).collect()
    images, errors, unsure = counts.row(0)
    by_class = rows.drop_nulls("label").group_by("label").len().sort("label").collect()
    return Summary(table, images, found, errors, unsure, dict(by_class.iter_rows()), min(resumed, images), proven)
