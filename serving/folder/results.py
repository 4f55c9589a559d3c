"""Write the predictions for all examples in a folder, in a stream: memory use does not grow with their number.

Examples are read in chunks, predicted by threads a few chunks ahead, and written in parts; a run that was killed
resumes after its last part. Parts and results are kept under a key that is computed from the model's checksum, the
batch size, and the names, sizes and modification times of the files.
"""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pandera.polars as pa
import polars as pl

from serving.folder.chunks import read_chunks
from serving.folder.discovery import SUPPORTED, find_sources
from serving.folder.predictions import predict_ahead
from stages.core.data.readers.listing import printable
from stages.core.deploy.onnx_model import OnnxModel, is_proven
from stages.core.files.atomic import remove, replacing
from stages.core.files.errors import UserError
from stages.core.files.exclusive import locked
from stages.core.files.tables import write_json, write_table

SHOWN = 3  # skipped files that a message names
MAX_BATCH = 65536
PART_CHUNKS = 64  # A killed run loses at most one part.
AHEAD = 2  # chunks per thread that are read ahead


class Survey(NamedTuple):
    """Hold the counts of what is in a folder."""

    key: str  # This changes with the model, the batch size and every file that is read.
    examples: int
    skipped: int  # files that hold no examples
    skipped_names: list[str]  # the first of these
    hidden: int  # hidden files and folders, each counted as one


class FolderResult(NamedTuple):
    """Hold a summary of the predictions for a folder."""

    table: Path
    examples: int
    survey: Survey
    errors: int
    unsure: int
    by_class: dict[str, int]
    resumed: int  # examples that an earlier run had predicted
    proven: bool  # whether the model is verified to match the evaluated one


def schema(classes: list[str]) -> pa.DataFrameSchema:
    """Return the schema of the table: one row per example, with its prediction or its error."""
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


def predict_folder(
    given: Path, output: Path, model_path: Path, batch_size: int, on_progress: Callable[[int, int], object]
) -> FolderResult:
    """Write predictions.parquet and .csv to `output`; report progress as the examples done and the examples in all."""
    if not 1 <= batch_size <= MAX_BATCH:
        raise UserError(f"batch size {batch_size}: must be from 1 to {MAX_BATCH:,}")
    if not given.exists():
        raise UserError(f"{given} not found: give a folder, or a file in one of the formats {SUPPORTED}")
    if not model_path.exists():
        raise UserError(f"{model_path} not found: `make run` creates it; --model names another one")
    model, this_folder = OnnxModel(model_path, threads=1), printable(str(given.resolve()))
    try:
        with locked(output / ".lock"):
            survey = take_survey(given, model, batch_size)
            if survey.examples == 0:
                raise UserError(f"{given} holds no images; {describe_skipped(survey)}; supported: {SUPPORTED}")
            done = output / "predictions.json"
            last_run = read_last_run(done)
            if (folder := last_run.get("of", this_folder)) != this_folder:
                raise UserError(f"{output} holds the predictions of {folder}; --output names another folder")
            tables = [done.with_suffix(suffix) for suffix in (".parquet", ".csv")]
            if last_run.get("key") == survey.key and all(table.exists() for table in tables):
                resumed = survey.examples
            else:
                parts = output / f"parts-{survey.key[:16]}"
                resumed = write_parts(given, parts, model, batch_size, lambda rows: on_progress(rows, survey.examples))
                write_tables(parts, output)
                write_json({"of": this_folder, "model": model.sha256, **survey._asdict()}, done)
                for stale in output.glob("parts-*"):
                    remove(stale)
            on_progress(survey.examples, survey.examples)
    except BlockingIOError:
        raise UserError(f"another run is writing to {output}; --output names another folder") from None
    return summarize(output / "predictions.parquet", survey, resumed, is_proven(model))


def take_survey(given: Path, model: OnnxModel, batch_size: int) -> Survey:
    """Count what is in `given`, and compute the key under which this model's results for it are kept."""
    key = hashlib.sha256(f"{model.sha256} {batch_size} {PART_CHUNKS}\n".encode())
    examples = skipped = hidden = 0
    names: list[str] = []
    for source in find_sources(given):
        if source.kind == "hidden":
            hidden += 1
        elif source.kind == "other":
            skipped += 1
            names += [source.name] if skipped <= SHOWN else []
        else:
            status = source.path.stat()
            key.update(f"{source.name} {source.kind} {source.error} {status.st_size} {status.st_mtime_ns}\n".encode())
            examples += source.examples
    return Survey(key.hexdigest(), examples, skipped, names, hidden)


def describe_skipped(survey: Survey) -> str:
    """Return a phrase with the number of files that were not read and the names of the first ones."""
    names = ", ".join(survey.skipped_names) + (", ..." if survey.skipped > len(survey.skipped_names) else "")
    named = f" ({names})" if names else ""
    return f"{survey.skipped:,} other files skipped{named}, {survey.hidden:,} hidden files or folders"


def read_last_run(path: Path) -> dict[str, Any]:
    """Return the record of a finished run, or an empty one if it is missing or damaged, so that the run is repeated."""
    try:
        record = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_parts(given: Path, parts: Path, model: OnnxModel, batch_size: int, on_rows: Callable[[int], object]) -> int:
    """Write the parts that are missing; return the number of rows in those that an earlier run wrote."""
    written = sorted(parts.glob("*.parquet"))
    try:
        rows = resumed = int(pl.scan_parquet(written).select(pl.len()).collect().item()) if written else 0
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{parts} is damaged: {error}; remove it to start from scratch") from None
    on_rows(rows)
    part = 1 + int(written[-1].stem) if written else 0
    tables: list[pl.DataFrame] = []
    threads = os.cpu_count() or 1

    def write_part() -> None:
        if tables:
            write_table(pl.concat(tables), parts / f"{part:012}.parquet", schema(model.spec.classes))
            tables.clear()

    chunks = read_chunks(find_sources(given), batch_size, skip=part * PART_CHUNKS)
    with ThreadPoolExecutor(threads) as pool:
        for chunk, table in predict_ahead(pool, model, chunks, AHEAD * threads):
            if chunk.number // PART_CHUNKS > part:
                write_part()
                part = chunk.number // PART_CHUNKS
            tables.append(table)
            rows += len(table)
            on_rows(rows)
    write_part()
    return resumed


def write_tables(parts: Path, output: Path) -> None:
    """Join the parts into one table in each format."""
    table = pl.scan_parquet(sorted(parts.glob("*.parquet")))
    with replacing(output / "predictions.parquet") as partial:
        table.sink_parquet(partial)
    with replacing(output / "predictions.csv") as partial:
        table.sink_csv(partial)


def summarize(table: Path, survey: Survey, resumed: int, proven: bool) -> FolderResult:
    """Count the rows of the table by result."""
    rows = pl.scan_parquet(table)
    counts = rows.select(pl.len(), pl.col("error").count().alias("errors"), pl.col("unsure").sum()).collect()
    examples, errors, unsure = counts.row(0)
    by_class = rows.drop_nulls("label").group_by("label").len().sort("label").collect()
    return FolderResult(
        table, examples, survey, errors, unsure, dict(by_class.iter_rows()), min(resumed, examples), proven
    )
