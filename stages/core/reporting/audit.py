"""Audit a data set: collect what a person should look at, as one table of findings.

Shape suffixes: N examples.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandera.polars as pa
import polars as pl
from numpy.typing import NDArray

from stages.core.data.readers.listing import natural
from stages.core.data.schemas import SPLITS
from stages.core.data.splits import Split
from stages.core.examples import image

# Each kind of finding, the most urgent first, and what it means.
MEANINGS = {
    "problem": "The file cannot be used, so it is in no split.",
    "conflicting label": "The same content has different labels.",
    "exact duplicate": "The same content occurs more than once. Copies in different splits come first.",
    "near duplicate": "It looks the same as a training image. Pairs with different labels come first.",
    "likely mislabelled": "The model assigns the image to another class. The least probable labels come first.",
    "outlier": "Brightness, contrast, area or width/height is far from the usual. The farthest come first.",
}
SHOWN = 50  # findings of each kind on the page
NAMED = 3  # copies of an example that are named
FAR = 3  # interquartile ranges beyond a quartile: the outer fences of Tukey, "Exploratory Data Analysis", 1977
# Spreadsheets run a text that begins with one of these as a formula; some take the wide forms for the others.
FORMULA = r"[=+\-@\t\r\n＝＋－＠]"  # noqa: RUF001


class Finding(NamedTuple):
    """Hold one finding about one example."""

    finding: str
    rank: int  # 1 for the one to look at first; the copies of one example share a rank
    id: int  # of the example
    detail: str
    other: int | None = None  # the id of an example to compare it with
    suggested: str | None = None  # the class to which the model assigns it


def schema() -> pa.DataFrameSchema:
    """Return the schema of the table that a person opens in a spreadsheet: one row per finding."""
    inert = pa.Check.str_matches(FORMULA.replace("[", "^[^"), error="not a formula")
    return pa.DataFrameSchema(
        {
            "finding": pa.Column(pl.String, pa.Check.isin([*MEANINGS])),
            "rank": pa.Column(pl.Int64, pa.Check.ge(1)),
            "file": pa.Column(pl.String, inert),
            "row": pa.Column(pl.Int64, pa.Check.ge(0), nullable=True),  # in a file of many examples, counted from 0
            "split": pa.Column(pl.String, pa.Check.isin(SPLITS), nullable=True),
            "label": pa.Column(pl.String, inert),
            "suggested": pa.Column(pl.String, inert, nullable=True),
            "detail": pa.Column(pl.String, inert),
        },
        strict=True,
        ordered=True,
    )


def audit(examples: pl.DataFrame, label_errors: pl.DataFrame, classes: list[str]) -> pl.DataFrame:
    """Return the findings about these examples: the columns of `schema`, the example's `id` and that of the `other`."""
    named = name_examples(examples, classes)
    findings = [
        *find_problems(named),
        *find_copies(named),
        *find_alike(named),
        *find_mislabelled(label_errors, classes),
        *find_outliers(named),
    ]
    text, number = pl.String(), pl.Int64()
    types = pl.Schema(zip(Finding._fields, (pl.Enum([*MEANINGS]), number, number, text, number, text), strict=True))
    table = pl.DataFrame(findings, types, orient="row")
    table = table.join(named, on="id", how="left", maintain_order="left").sort("finding", "rank", maintain_order=True)
    return table.cast({"finding": pl.String}).select(*schema().columns, "id", "other")


def defuse(findings: pl.DataFrame) -> pl.DataFrame:
    """Return the table of `schema`, in which no text is a formula; a file keeps a path that leads to it."""
    marks = {"file": "./", "label": "'", "suggested": "'", "detail": "'"}
    texts = [pl.col(name).str.replace(f"^({FORMULA})", f"{mark}$1") for name, mark in marks.items()]
    return findings.with_columns(texts).select(*schema().columns)


def name_examples(examples: pl.DataFrame, classes: list[str]) -> pl.DataFrame:
    """Return the examples with the names of their labels, and with `place`, which names an example in a sentence.

    Column `row` says which example of a file it is, counted from 0; null where the file holds only one.
    """
    row = pl.when(pl.len().over("file") > 1).then(pl.col("id") - pl.col("id").min().over("file"))
    label = pl.col("label").replace_strict(range(len(classes)), classes, return_dtype=pl.String)
    place = ["file", pl.format(" row {}", "row"), pl.format(" ({}, labelled {})", "split", "label")]
    return examples.with_columns(row=row, label=label).with_columns(place=pl.concat_str(place, ignore_nulls=True))


def find_problems(named: pl.DataFrame) -> Iterator[Finding]:
    """Yield a finding for each example that cannot be used."""
    problems = named.drop_nulls("problem").sort("id").select("id", "problem")
    for rank, (id_, problem) in enumerate(problems.iter_rows(), 1):
        yield Finding("problem", rank, id_, problem)


def find_copies(named: pl.DataFrame) -> Iterator[Finding]:
    """Yield a finding for each example whose content occurs again, and another if a copy has another label."""
    groups = (
        named.drop_nulls("input_sha256")
        .filter(pl.len().over("input_sha256") > 1)
        .group_by("input_sha256", maintain_order=True)
        .agg("id", "place", splits=pl.col("split").n_unique(), labels=pl.col("label").n_unique())
        .sort("splits", descending=True, maintain_order=True)
    )
    for finding, chosen in (("exact duplicate", groups), ("conflicting label", groups.filter(pl.col("labels") > 1))):
        for rank, (ids, places) in enumerate(chosen.select("id", "place").iter_rows(), 1):
            for index, id_ in enumerate(ids):
                others = [place for other, place in enumerate(places[: NAMED + 1]) if other != index][:NAMED]
                more = f" and {len(ids) - 1 - len(others):,} more" if len(ids) - 1 > len(others) else ""
                other = ids[1] if index == 0 else ids[0]
                yield Finding(finding, rank, id_, f"same content as {', '.join(others)}{more}", other)


def find_alike(named: pl.DataFrame) -> Iterator[Finding]:
    """Yield a finding for each example that looks the same as one in another split, but is no exact copy of it."""
    others = named.select("input_sha256", "label", "place", alike="id")
    pairs = (
        named.join(others, on="alike", suffix="_other")
        .filter(pl.col("input_sha256") != pl.col("input_sha256_other"))
        .sort(pl.col("label") == pl.col("label_other"), "id")
    )
    for rank, (id_, other, place) in enumerate(pairs.select("id", "alike", "place_other").iter_rows(), 1):
        yield Finding("near duplicate", rank, id_, f"looks the same as {place}", other)


def find_mislabelled(label_errors: pl.DataFrame, classes: list[str]) -> Iterator[Finding]:
    """Yield a finding for each label that is likely wrong."""
    for rank, row in enumerate(label_errors.iter_rows(named=True), 1):
        suggested = classes[row["suggested"]]
        detail = (
            f"the model gives {suggested} a probability of {row['suggested_confidence']:.2%}"
            f" and the label {row['label_confidence']:.2%}"
        )
        yield Finding("likely mislabelled", rank, row["id"], detail, suggested=suggested)


def find_outliers(named: pl.DataFrame) -> Iterator[Finding]:
    """Yield a finding for each example with a number beyond Tukey's outer fences, the farthest first.

    Areas and ratios are compared by their logarithms, so that half and twice the usual are equally far from it. Where
    nearly all are equal, those within a factor of two are no outliers, nor are those within three levels of brightness.
    """
    usable = named.drop_nulls("split")
    width_N, height_N = (usable[name].to_numpy().astype(np.float64) for name in ("width", "height"))
    brightness_N, contrast_N = (usable[name].to_numpy().astype(np.float64) for name in ("brightness", "contrast"))
    far_N, details = np.zeros(len(usable)), [""] * len(usable)
    for name, values_N, scaled_N, least, digits in (
        ("brightness", brightness_N, brightness_N, 1, ".1f"),
        ("contrast", contrast_N, contrast_N, 1, ".1f"),
        ("area", width_N * height_N, np.log2(width_N * height_N), 1 / FAR, ",.0f"),
        ("width/height", width_N / height_N, np.log2(width_N / height_N), 1 / FAR, ".2f"),
    ):
        distance_N = measure_distances(scaled_N, least)
        outside_N = distance_N > FAR
        usual = [format(extreme(values_N[~outside_N]), digits) for extreme in (np.min, np.max)]
        for index in np.flatnonzero(outside_N):
            found = f"{name} {values_N[index]:{digits}}, usually {' to '.join(dict.fromkeys(usual))}"
            details[index] += f"; {found}" if details[index] else found
        far_N = np.maximum(far_N, distance_N)
    order_N = np.lexsort((usable["id"].to_numpy(), -far_N))
    for rank, index in enumerate(order_N[: np.count_nonzero(far_N > FAR)].tolist(), 1):
        size = f"{width_N[index]:.0f}x{height_N[index]:.0f}"
        yield Finding("outlier", rank, int(usable["id"][index]), f"{size}: {details[index]}")


def measure_distances(values_N: NDArray[np.float64], least: float) -> NDArray[np.float64]:
    """Return how far each value lies beyond the nearer quartile, in interquartile ranges; negative between them.

    A smaller interquartile range than `least` counts as that.
    """
    low, high = np.quantile(values_N, [0.25, 0.75])
    return np.maximum(low - values_N, values_N - high) / max(high - low, least)


def show_findings(findings: pl.DataFrame, examples: pl.DataFrame, splits: Mapping[str, Split]) -> list[dict[str, Any]]:
    """Return each kind of finding with its meaning, the number of examples, and the first ones with pictures.

    A group of copies is shown once.
    """
    used = examples.drop_nulls("split").select("id", "split", place=pl.int_range(pl.len()).over("split"))
    shown = []
    for finding, meaning in MEANINGS.items():
        found = findings.filter(finding=finding)
        first = found.unique("rank", keep="first", maintain_order=True).head(SHOWN)
        wanted = used.filter(pl.col("id").is_in([*first["id"], *first["other"].drop_nulls()]))
        inputs = {id_: splits[split].inputs[place] for id_, split, place in wanted.iter_rows()}
        rows = []
        for row in first.iter_rows(named=True):
            pictures = [inputs[id_] for id_ in (row["id"], row["other"]) if id_ in inputs]
            rows.append({**row, "picture": image.draw(np.stack(pictures)) if pictures else None})
        shown.append({"finding": finding, "meaning": meaning, "count": len(found), "rows": rows})
    return shown


def count_sizes(examples: pl.DataFrame) -> list[dict[str, Any]]:
    """Return each mode and size of the pictures as they were delivered, with the number of pictures, the most first."""
    sizes = examples.drop_nulls("width").group_by("mode", "width", "height").agg(images=pl.len())
    return sizes.sort("images", "mode", "width", "height", descending=[True, False, False, False]).to_dicts()


def describe_order(classes: list[str]) -> str:
    """Return a sentence about the order of the classes."""
    if classes == sorted(classes, key=natural):
        return "The classes are in the natural order of their names, in which 9 comes before 10."
    return "The classes are in the order in which dataset.yaml lists them."
