"""Turn the data set into splits of raw inputs of one shape, and specify what an example is.

Reads artifacts/raw/DATASET/ and, if the files of the data set are yours, data/DATASET/.
Writes artifacts/normalized/: a uint8 .npy file per split, examples.parquet with one row per example, spec.json;
artifacts/metrics/normalize.json: examples, copies and problems; artifacts/details/normalize.json: the same by split.
Fails when a file of arrays is damaged, a label is unknown, more examples than `problems` allows cannot be read or are
blank, a split lacks a class, a class's share of a split is out of bounds, or given splits share examples.

The scale of the inputs (mean and std) goes into the spec, from which the first layer of the network is made, so
training, evaluation and the exported file all take the same raw bytes.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.core.config.params import load_dataset, load_params
from stages.core.data import schemas, splits
from stages.core.data.config import Dataset
from stages.core.data.division import divide
from stages.core.data.raw import Joined, Known, Raw, read_arrays, read_files
from stages.core.examples import image, likeness
from stages.core.examples.columns import INPUT
from stages.core.examples.spec import Spec
from stages.core.files import layout
from stages.core.files.atomic import replacing
from stages.core.files.errors import UserError, report_errors
from stages.core.files.exclusive import exclusive
from stages.core.files.tables import read_json, read_table, write_json, write_table
from stages.core.machine.provenance import made_from

FEWEST = 20  # examples; with fewer, neither training nor a test means anything
SHOWN = 5  # examples named in a message
CHUNK = 512  # examples described at a time by one thread


def find_known(decoder: str) -> Known:
    """Return what the last run decoded, unless it is damaged or made by another version of the decoder."""
    try:
        layout.NORMALIZE.verify(layout.NORMALIZED, layout.DATA_DETAILS)
        if read_json(layout.DATA_DETAILS).get("decoder") != decoder:
            return Known({}, (), None)
        dataset = splits.read_dataset()
        rows = {}
        for split in schemas.SPLITS:
            inputs = dataset.read(split).inputs
            checksums = dataset.examples.filter(split=split)["sha256"]
            rows.update({checksum: (inputs, row) for row, checksum in enumerate(checksums)})
        return Known(rows, dataset.spec.shape, dataset.spec.opening)
    except (UserError, OSError):  # It is only a saving.
        return Known({}, (), None)


def describe(raw: Raw) -> pl.DataFrame:
    """Return the table of all examples with their checksums and what their kind records; blank ones have a problem."""

    def describe_chunk(start: int) -> pl.DataFrame:
        inputs = raw.inputs[np.arange(start, min(start + CHUNK, len(raw.inputs)))]
        checksums = [hashlib.sha256(example.data).hexdigest() for example in inputs]
        blank = pl.Series("blank", image.find_blank(inputs))
        return pl.DataFrame({"input_sha256": checksums, "blank": blank, **image.describe(inputs)})

    with ThreadPoolExecutor(os.cpu_count()) as threads:  # hashlib and NumPy release Python's lock while they work.
        parts = threads.map(describe_chunk, range(0, len(raw.inputs), CHUNK))
    table = raw.examples.hstack(pl.concat(parts)).with_row_index("id").cast({"id": pl.Int64})
    readable = pl.col("problem").is_null()
    problem = pl.coalesce("problem", pl.when("blank").then(pl.lit(image.BLANK)))
    kept = pl.when(readable & ~pl.col("blank"))
    return table.with_columns(
        problem.alias("problem"),
        pl.coalesce("sha256", "input_sha256").alias("sha256"),
        *(kept.then(name).alias(name) for name in ["input_sha256", *INPUT]),
    ).drop("blank")


def check_problems(examples: pl.DataFrame, dataset: Dataset, folder: Path) -> None:
    """Raise `UserError` if too many examples cannot be used, or too few are left."""
    bad = examples.drop_nulls("problem")
    if len(bad) > dataset.problems * len(examples):
        named = [f"  {file}: {problem}" for file, problem in bad.select("file", "problem").head(SHOWN).iter_rows()]
        more = [f"  and {len(bad) - SHOWN:,} more"] if len(bad) > SHOWN else []
        limit = f"more than `problems` allows ({dataset.problems:.2%})"
        first = f"{folder}: {len(bad):,} of {len(examples):,} examples cannot be used, {limit}:"
        raise UserError("\n".join([first, *named, *more]))
    if (left := len(examples) - len(bad)) < FEWEST:
        raise UserError(f"{folder} has {left} examples, at least {FEWEST} are needed; add more")


def check_copies(examples: pl.DataFrame, dataset: Dataset, folder: Path) -> None:
    """Raise `UserError` if the given splits share examples, which makes a test say less than it seems to."""
    given = examples.drop_nulls(["split", "input_sha256"])
    shared = given.filter(pl.col("split").n_unique().over("input_sha256") > 1).sort("input_sha256", "id")
    if len(shared) and not dataset.allow_duplicates:
        groups = shared.group_by("input_sha256", maintain_order=True).agg("file", "split").head(SHOWN)
        named = [
            "  " + ", ".join(f"{file} ({split})" for file, split in zip(files, of, strict=True))
            for _, files, of in groups.iter_rows()
        ]
        advice = "remove them from one side, or state `allow_duplicates: true` in dataset.yaml"
        raise UserError("\n".join([f"{folder}: {len(shared):,} examples are in several splits; {advice}:", *named]))


def find_alike(examples: pl.DataFrame, inputs: Joined) -> pl.Series:
    """Return, for each example outside of training, the id of a training example that looks the same."""
    train = examples.filter(split="train")
    others = examples.filter(pl.col("split").is_in(["validation", "test"])).sort("id")
    found = likeness.find_alike(inputs, others["id"].to_numpy(), train["id"].to_numpy())
    pairs = pl.DataFrame({"id": others["id"], "alike": found}, {"id": pl.Int64, "alike": pl.Int64})
    alike = pairs.filter(pl.col("alike") >= 0)
    return examples.select("id").join(alike, on="id", how="left", maintain_order="left")["alike"]


def measure_scale(inputs: Joined, rows_N: NDArray[np.intp]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of each plane of x / 255, rounded, over these rows."""
    sums = [image.scale_of(part) for part in inputs.chunks(rows_N, splits.CHUNK)]
    count = len(rows_N) * int(np.prod(inputs.shape[1:]))
    mean_C, square_C = (sum(parts) / count for parts in zip(*sums, strict=True))
    std_C = np.sqrt(np.maximum(square_C - mean_C**2, 0)).clip(1e-4)
    return tuple(mean_C.round(4).tolist()), tuple(std_C.round(4).tolist())


def specify(raw: Raw, dataset: Dataset, train_N: NDArray[np.intp]) -> Spec:
    """Return the spec of the data set's examples."""
    planes, height, width = raw.inputs.shape
    measured = measure_scale(raw.inputs, train_N) if "auto" in (dataset.mean, dataset.std) else ((), ())
    scale = [
        found if value == "auto" else tuple(value) if isinstance(value, list) else (value,) * planes
        for value, found in zip((dataset.mean, dataset.std), measured, strict=True)
    ]
    for field, values in zip(("mean", "std"), scale, strict=True):
        if len(values) != planes:
            raise UserError(f"{field} must have one value or {planes}, one for each plane, found {len(values)}")
    return Spec(
        kind=dataset.kind,
        shape=(planes, height, width),
        dtype="uint8",
        classes=raw.classes,
        mean=scale[0],
        std=scale[1],
        opening=raw.opening,
    )


def main() -> None:
    params = load_params()
    dataset = load_dataset(params)
    folder, download = layout.raw_folder(params.dataset), layout.download_outputs(params.dataset)
    download.verify(folder)
    decoder = image.decoder_version()
    with replacing(layout.NORMALIZED) as partial:
        partial.mkdir()
        scratch = partial / "inputs.npy"
        if (listed := layout.raw_files(params.dataset)).exists():
            table = read_table(listed, schemas.files())
            root = folder if dataset.sources else layout.dataset_file(params.dataset).parent
            raw = read_files(table, root, dataset, scratch, find_known(decoder))
        else:
            root, raw = folder, read_arrays(folder, dataset)

        examples = describe(raw)
        check_problems(examples, dataset, root)
        check_copies(examples, dataset, root)
        usable = examples.filter(pl.col("problem").is_null())
        shares = {"validation": dataset.validation, "test": dataset.test}
        usable = usable.with_columns(divide(usable, shares, raw.classes, params.seed, root).alias("split"))
        splits.check_classes(usable, raw.classes, dataset.class_share, root)
        usable = usable.with_columns(find_alike(usable, raw.inputs).alias("alike"))

        schema = schemas.examples(len(raw.classes))
        parts = [usable.filter(split=split) for split in schemas.SPLITS]
        bad = examples.drop_nulls("problem").with_columns(split=pl.lit(None, pl.String), alike=pl.lit(None, pl.Int64))
        examples = pl.concat([*parts, bad]).select(list(schema.columns))
        ids = {split: part["id"].to_numpy() for split, part in zip(schemas.SPLITS, parts, strict=True)}
        spec = specify(raw, dataset, ids["train"])
        splits.write_spec(spec, partial)
        for split, rows_N in ids.items():
            splits.write_split(split, spec, raw.inputs, rows_N, partial)
        write_table(examples, partial / layout.EXAMPLES.name, schema)
        del raw
        scratch.unlink(missing_ok=True)

    counts = splits.count_examples(examples)
    duplicates = counts["duplicates_across_splits"] + counts["duplicates_within_split"]
    # Where the files came from makes no difference: `download.digest()` says what they are.
    settings = dataset.model_dump(exclude={"sources", "sha256"}) | {"seed": params.seed}
    about = {"licence": dataset.licence, "description": dataset.description, "decoder": decoder}
    metrics = {"images": len(examples) - counts["problems"], "duplicates": duplicates, "problems": counts["problems"]}
    write_json(metrics, layout.DATA_METRICS)
    write_json({**counts, **about, "made_from": made_from(download.digest(), settings)}, layout.DATA_DETAILS)
    layout.NORMALIZE.record(layout.NORMALIZED, layout.DATA_METRICS, layout.DATA_DETAILS)
    sizes = ", ".join(f"{counts[split]:,} {split}" for split in schemas.SPLITS)
    shape = "x".join(map(str, spec.shape))
    print(
        f"normalize: {sizes} of {len(spec.classes)} classes as {shape}; {counts['problems']} problems,"
        f" {counts['duplicates_across_splits']} exact and {counts['alike_across_splits']} near duplicates across splits"
    )


if __name__ == "__main__":
    with report_errors("normalize"), exclusive("normalize"):
        main()
