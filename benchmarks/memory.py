"""Stage `train` under a memory limit, on made-up data ten times as large: `python -m benchmarks.memory`.

Writes benchmarks/memory.md. Needs Linux and the right to make a control group (root, mostly); the limit counts the
process's own memory and the pages of files that it has in the page cache.
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

import torch
from stages.core.sums import record  # FIXME
from tensordict import TensorDict

from benchmarks.report import PROJECT, table, write
from stages import train
from stages.core.config.params import PARAMS, override_params

SIDE, PART = 112, 1000
IMAGE_BYTES = 4 * SIDE**2


class Group(NamedTuple):
    """A control group's files."""

    procs: Path
    limit: Path
    peak: Path


@contextmanager
def control_group(limit: int) -> Iterator[Group]:
    """A memory control group of version 2 or 1."""
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


def make_up(folder: Path, split: str, count: int) -> None:
    """Bright squares whose place tells the class, on noise, as a split of normalized images."""
    data = TensorDict(batch_size=[count]).memmap_(str(folder / train.NORMALIZED / split))
    data.make_memmap_from_tensor("label", torch.arange(count) % 10)
    data.make_memmap_from_tensor("id", torch.arange(count) + (10**9 if split == "validation" else 0))
    images_NCHW = data.make_memmap("image", torch.Size((count, 1, SIDE, SIDE)), dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    for start in range(0, count, PART):
        images = torch.rand((min(PART, count - start), 1, SIDE, SIDE), generator=generator) - 1
        for index, image in enumerate(images):
            place = 11 * ((start + index) % 10)
            image[0, place : place + 11, 40:80] += 1
        images_NCHW[start : start + PART] = images


def forget_pages(folder: Path) -> None:
    """Out of the page cache with the files, so that reading them counts for who reads them."""
    for path in folder.rglob("*.memmap"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = ArgumentParser("python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--limit", type=float, default=1.5, help="GB of memory (default: 1.5)")
    parser.add_argument("--times", type=float, default=10, help="data by memory (default: 10)")
    arguments = parser.parse_args()
    limit = int(arguments.limit * 1e9)
    count = int(limit * arguments.times) // IMAGE_BYTES
    with tempfile.TemporaryDirectory() as scratch, control_group(limit) as group:
        folder = Path(scratch)
        copytree(PROJECT / "stages", folder / "stages")
        copy(PROJECT / PARAMS, folder)
        settings = {"model.hidden": [32], "epochs": 1, "optimizer.lr": 0.01}
        changes = {f"recipes.article.{field}": value for field, value in settings.items()}
        override_params(folder / PARAMS, {"recipe": "article", "device": "cpu", **changes})
        print(f"making up {count:,} images of {SIDE}x{SIDE}, {count * IMAGE_BYTES / 1e9:.1f} GB", flush=True)
        make_up(folder, "train", count)
        make_up(folder, "validation", 1000)
        with chdir(folder):
            record("normalize", train.NORMALIZED)
        forget_pages(folder)
        inside = f"echo $$ > {group.procs} && exec {sys.executable} -m stages.train"
        started = time.perf_counter()
        subprocess.run(["sh", "-c", inside], cwd=folder, check=True)
        seconds, peak = time.perf_counter() - started, int(group.peak.read_text())
    results = {"limit_bytes": limit, "data_bytes": count * IMAGE_BYTES, "peak_bytes": peak, "seconds": seconds}
    cells = [f"{results[name] / 1e9:.2f}" for name in ("data_bytes", "limit_bytes", "peak_bytes")]
    text = [
        "Stage `train`, an MLP, one epoch, with all checks and the sums of the data, in a control group that counts the"
        " process and its files' pages.",
        table(["data, GB", "memory limit, GB", "peak, GB", "seconds"], [[*cells, f"{seconds:.0f}"]]),
    ]
    write("memory", "Data ten times the size of memory", ("torch", "tensordict"), text, results)


if __name__ == "__main__":
    main()
