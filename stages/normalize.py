"""Divide the data set into splits of raw tensors, and write the spec of its examples.

Reads artifacts/raw/DATASET/.
Writes artifacts/normalized/: a uint8 .npy file per split, examples.parquet with one row per example, spec.json;
artifacts/metrics/normalize.json: examples and exact duplicates; artifacts/details/normalize.json: the same by split.
Fails when a file is not an IDX file of bytes, a label is unknown, an image is constant, a split lacks a class, a
class's share of a split is out of bounds, or training and test images differ in shape.

The scale of the inputs (`normalize.mean` and `normalize.std`) goes into the spec, from which the first layer of the
network is made, so training, evaluation and the exported file all take the same raw bytes.
"""

from pathlib import Path

import numpy as np
import polars as pl

from stages.core.config.params import Params, load_params
from stages.core.data import schemas, splits
from stages.core.data.idx import RawSplit, read_raw
from stages.core.examples import image
from stages.core.examples.spec import Spec
from stages.core.files import layout
from stages.core.files.atomic import replacing
from stages.core.files.errors import UserError, report_errors
from stages.core.files.exclusive import exclusive
from stages.core.files.tables import validate, write_json, write_table
from stages.core.machine.provenance import made_from


def tabulate(raw: RawSplit, first_id: int) -> pl.DataFrame:
    """Return one row for each example: its id, label, file, checksum and the columns that its kind adds."""
    return pl.concat(
        pl.DataFrame({
            "label": raw.labels[start : start + len(part)].astype(np.int64),
            "file": [raw.file] * len(part),
            "sha256": splits.checksums_of(part),
            **image.describe(part),
        })
        for start, part in zip(range(0, len(raw.inputs), splits.CHUNK), splits.chunks(raw.inputs), strict=True)
    ).select(pl.int_range(first_id, first_id + pl.len(), dtype=pl.Int64).alias("id"), pl.all())  # fmt: skip


def divide(train: pl.DataFrame, test: pl.DataFrame, share: float, seed: int) -> pl.DataFrame:
    """Return the table of all examples in the order of the splits; validation examples are held out of `train`."""
    held_N = splits.hold_out(train["label"].to_numpy(), train["sha256"].to_list(), share, seed)
    parts = {"train": train.filter(~held_N), "validation": train.filter(held_N), "test": test}
    tables = [part.with_columns(split=pl.lit(name)) for name, part in parts.items()]
    return pl.concat(tables).select("id", "split", pl.exclude("id", "split"))


def read_validated(folder: Path, split: str, num_classes: int) -> RawSplit:
    """Return a split of the raw data set after validating its labels."""
    raw = read_raw(folder, split)
    validate(pl.DataFrame({"label": raw.labels}), schemas.raw_labels(num_classes), folder)
    return raw


def specify(params: Params, train: RawSplit, test: RawSplit, folder: Path) -> Spec:
    """Return the spec of the data set's examples."""
    ours, theirs = train.inputs.shape[1:], test.inputs.shape[1:]
    if ours != theirs:
        raise UserError(f"{folder} has training images of shape {ours}, test images of shape {theirs}")
    dataset, scale = params.chosen_dataset, params.normalize
    return image.specify(ours, dataset.classes, scale.mean, scale.std, centre_ink=dataset.centre_ink)


def main() -> None:
    params = load_params()
    folder, download = layout.raw_folder(params.dataset), layout.download_outputs(params.dataset)
    download.verify(folder)
    train, test = (read_validated(folder, split, len(params.chosen_dataset.classes)) for split in ("train", "test"))
    spec = specify(params, train, test, folder)

    in_train, in_test = tabulate(train, 0), tabulate(test, len(train.labels))
    examples = divide(in_train, in_test, params.normalize.validation, params.seed)
    splits.check_classes(examples, spec.classes, params.normalize.class_share, folder)

    schema = schemas.examples(len(spec.classes))
    validate(examples, schema, layout.EXAMPLES)
    ids = {split: examples.filter(split=split)["id"].to_numpy() for split in schemas.SPLITS}
    with replacing(layout.NORMALIZED) as partial:
        partial.mkdir()
        splits.write_spec(spec, partial)
        splits.write_split("train", spec, train.inputs, ids["train"], partial)
        splits.write_split("validation", spec, train.inputs, ids["validation"], partial)
        splits.write_split("test", spec, test.inputs, ids["test"] - len(train.labels), partial)
        write_table(examples, partial / layout.EXAMPLES.name, schema)
    counts = splits.count_examples(examples)
    duplicates = counts["duplicates_across_splits"] + counts["duplicates_within_split"]
    settings = params.normalize.model_dump() | {"seed": params.seed}
    write_json({"images": len(examples), "duplicates": duplicates}, layout.DATA_METRICS)
    write_json({**counts, "made_from": made_from(download.digest(), settings)}, layout.DATA_DETAILS)
    layout.NORMALIZE.record(layout.NORMALIZED, layout.DATA_METRICS, layout.DATA_DETAILS)
    sizes = ", ".join(f"{counts[split]:,} {split}" for split in schemas.SPLITS)
    print(f"normalize: {sizes}; {counts['duplicates_across_splits']} exact duplicates across splits")


if __name__ == "__main__":
    with report_errors("normalize"), exclusive("normalize"):
        main()
