"""Train under a memory limit on synthetic data that are ten times as large: `python -m benchmarks.memory`.

Writes benchmarks/memory.md. This needs Linux and permission to create a control group (usually root). The limit applies
to the process's own memory and the pages of its files in the page cache.
"""

import os
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from shutil import copy, copytree
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.report import PROJECT, table, write
from stages.core.config.params import PARAMS, override_params
from stages.core.data.schemas import examples
from stages.core.data.splits import write_spec
from stages.core.examples.spec import Opening, Spec
from stages.core.files.arrays import write_array
from stages.core.files.layout import EXAMPLES, NORMALIZE, NORMALIZED, split_array
from stages.core.files.tables import write_table

SIDE, PART = 112, 1000
IMAGE_BYTES = SIDE**2
CLASSES = [str(label) for label in range(10)]


class Group(NamedTuple):
    """Hold the paths of a control group's files."""

    procs: Path
    limit: Path
    peak: Path


@contextmanager
def control_group(limit: int) -> Iterator[Group]:
    """Yield a memory control group, of version 2 or 1."""
    root = Path("/sys/fs/cgroup")
    first = (root / "memory").is_dir()
    folder = root / ("memory" if first else "") / f"vision-pipeline-{os.getpid()}"
    names = ("memory.limit_in_bytes", "memory.max_usage_in_bytes") if first else ("memory.max", "memory.peak")
    folder.mkdir()
    try:
        group = Group(folder / "cgroup.procs", *(folder / name for name in names))
        group.limit.write_text(str(limit))
        yield group
    finally:
        folder.rmdir()


def make_up(counts: dict[str, int]) -> None:
    """Write what stage `normalize` writes, with the given number of synthetic images in each split."""
    NORMALIZED.mkdir(parents=True)
    opening = Opening(color="grey", resize="fit", centre_ink=False, max_pixels=SIDE**2)
    spec = Spec(
        kind="image", shape=(1, SIDE, SIDE), dtype="uint8", classes=CLASSES, mean=(0.5,), std=(0.5,), opening=opening
    )
    write_spec(spec, NORMALIZED)
    for seed, (split, count) in enumerate(counts.items()):
        write_array(split_array(split), (count, *spec.shape), spec.dtype, draw(count, seed))
    ids = range(sum(counts.values()))
    columns = {
        "id": ids,
        "split": [split for split, count in counts.items() for _ in range(count)],
        "label": [index % len(CLASSES) for count in counts.values() for index in range(count)],
        "file": pl.repeat("made up", len(ids), eager=True),
        "sha256": [f"{number:064x}" for number in ids],
        "brightness": pl.repeat(64, len(ids), dtype=pl.Float32, eager=True),
        "contrast": pl.repeat(64, len(ids), dtype=pl.Float32, eager=True),
    }
    schema = examples(len(CLASSES))
    absent = [
        pl.lit(None).cast(column.dtype.type).alias(name)
        for name, column in schema.columns.items()
        if name not in columns
    ]
    write_table(pl.DataFrame(columns).with_columns(absent).select(list(schema.columns)), EXAMPLES, schema)


def draw(count: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Yield `count` images [N, 1, H, W] in parts: noise with a bright patch whose position depends on the class."""
    generator = np.random.default_rng(seed)
    for start in range(0, count, PART):
        size = min(PART, count - start)
        images_NCHW = generator.integers(128, size=(size, 1, SIDE, SIDE), dtype=np.uint8)
        for index, image in enumerate(images_NCHW):
            place = 11 * ((start + index) % len(CLASSES))
            image[0, place : place + 11, 40:80] += 127
        yield images_NCHW


def forget_pages(folder: Path) -> None:
    """Drop the files from the page cache, so that their pages count towards the process that reads them."""
    for path in folder.rglob("*.npy"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = ArgumentParser("python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--limit", type=float, default=1.5, help="GB of memory (default: 1.5)")
    parser.add_argument("--times", type=float, default=10, help="size of the data, in memory limits (default: 10)")
    arguments = parser.parse_args()
    limit = int(arguments.limit * 1e9)
    count = int(limit * arguments.times) // IMAGE_BYTES
    with tempfile.TemporaryDirectory() as scratch, control_group(limit) as group:
        folder = Path(scratch)
        copytree(PROJECT / "stages", folder / "stages")
        copy(PROJECT / PARAMS, folder)
        settings = {"model.hidden": [32], "epochs": 1, "optimizer.lr": 0.01}
        changes = {f"recipes.article.{field}": value for field, value in settings.items()}
        override_params(folder / PARAMS, {"recipe": "article", "machine.device": "cpu", **changes})
        print(f"generating {count:,} images of {SIDE}x{SIDE}, {count * IMAGE_BYTES / 1e9:.1f} GB", flush=True)
        with chdir(folder):
            make_up({"train": count, "validation": 1000, "test": len(CLASSES)})
            NORMALIZE.record(NORMALIZED)
        forget_pages(folder)
        inside = f"echo $$ > {group.procs} && exec {sys.executable} -m stages.train"
        started = time.perf_counter()
        subprocess.run(["sh", "-c", inside], cwd=folder, check=True)
        seconds, peak = time.perf_counter() - started, int(group.peak.read_text())
    results = {"limit_bytes": limit, "data_bytes": count * IMAGE_BYTES, "peak_bytes": peak, "seconds": seconds}
    cells = [f"{results[name] / 1e9:.2f}" for name in ("data_bytes", "limit_bytes", "peak_bytes")]
    text = [
        "Stage `train` with an MLP for one epoch, including all checks and the checksums of the data, in a control"
        " group that counts the memory of the process and the pages of its files.",
        table(["data, GB", "memory limit, GB", "peak, GB", "seconds"], [[*cells, f"{seconds:.0f}"]]),
    ]
    write("memory", "Data ten times the size of memory", ("torch", "numpy"), text, results)


if __name__ == "__main__":
    main()
