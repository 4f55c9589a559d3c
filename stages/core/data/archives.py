"""Unpack zip and tar archives without trusting them.

An archive may name files outside of its folder, hold links and devices, or unpack to more than the disk can hold. All
of that is refused, by the name of the member, before anything of this member is written.
"""

import bz2
import errno
import gzip
import io
import lzma
import re
import shutil
import stat
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, cast

from rich.progress import Progress

from stages.core.data.readers.listing import is_hidden, printable
from stages.core.files.errors import UserError

MAX_UNPACKED_BYTES = 1 << 36
MAX_MEMBERS = 2_000_000
MAX_RATIO = 200  # of unpacked to packed bytes: pictures hardly shrink in an archive, bombs do by 1,000 and more
HARMLESS_BYTES = 1 << 28  # up to which any ratio is allowed
HEADER_BYTES = 1 << 20  # between two members of a tar archive, which are read as a whole
SHOWN = 10  # names in a message


class Member(NamedTuple):
    """Hold one entry of an archive."""

    name: str
    size: int  # unpacked, as the archive says; no more is read
    kind: str  # "file", "folder", or what it is instead
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, target: Path, folder: str | None = None) -> None:
    """Write the files of an archive, or those below one of its folders, to the folder `target`, which is created.

    Raises `UserError` for a damaged archive, for a member that is neither a file nor a folder or that lies outside, and
    for more bytes or members than the limits allow.
    """
    size = archive.stat().st_size
    allowed = min(MAX_UNPACKED_BYTES, max(HARMLESS_BYTES, MAX_RATIO * size))
    tops: dict[str, None] = {}
    unpacked, wrote, name = 0, False, "the first member"
    target.mkdir()
    try:
        with (
            Progress(transient=True, disable=not sys.stdout.isatty()) as progress,
            progress.open(archive, "rb", description="Unpacking") as file,
        ):
            for number, member in enumerate(members_of(file), 1):
                name = printable(member.name)
                path = check_path(name)
                unpacked += member.size
                if number > MAX_MEMBERS:
                    raise UserError(f"it has more than {MAX_MEMBERS:,} members")
                if member.size < 0 or unpacked > allowed:
                    raise UserError(f"it unpacks to more than {allowed:,} bytes, from {size:,}, reached at {name}")
                if member.kind not in {"file", "folder"}:
                    raise UserError(f"{name} is {member.kind}; only files and folders are allowed")
                tops |= dict.fromkeys(path.parts[:1])
                if any(is_hidden(part) for part in path.parts) or (place := below(path, folder)) is None:
                    continue
                wrote = True
                write_member(member, target / place)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # For other bytes, zipfile, tarfile and each compression raise all kinds of exceptions.
        if isinstance(error, OSError) and error.errno not in {None, errno.EINVAL}:  # EINVAL: a damaged zip's offset.
            raise
        raise UserError(f"it is damaged, at {name} or after it: {error}") from error
    if not wrote:
        found = ", ".join([*tops][:SHOWN]) or "nothing"
        raise UserError(f"it has no folder {folder}, found at the top: {found}" if folder else "it holds no files")


def write_member(member: Member, path: Path) -> None:
    """Write a file or create a folder; raise `UserError` if it collides with an earlier member."""
    try:
        if member.kind == "folder":
            path.mkdir(parents=True, exist_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with member.open() as content, path.open("xb") as file:
            shutil.copyfileobj(content, file)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise UserError(f"{printable(member.name)} is named twice, or is both a file and a folder") from None
    except OSError as error:
        if "File name too long" in str(error):
            raise UserError(f"{printable(member.name)[:100]}... has a name that is too long") from None
        raise
    if path.stat().st_size != member.size:
        raise UserError(f"{printable(member.name)} has {path.stat().st_size:,} bytes, its header says {member.size:,}")


def check_path(name: str) -> PurePosixPath:
    """Return the path of a member; raise `UserError` if it may lead out of the archive's folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", name) or "\0" in name:
        raise UserError(f"{name} leads out of the archive; only relative paths without .. are allowed")
    return path


def below(path: PurePosixPath, folder: str | None) -> PurePosixPath | None:
    """Return the path relative to a folder of the archive, or None if it is elsewhere."""
    if folder is None:
        return path
    return path.relative_to(folder) if path.is_relative_to(folder) else None


def members_of(file: Any) -> Iterator[Member]:
    """Yield the members of an open archive; its first bytes, not its name, decide how it is read."""
    head = file.read(6)
    file.seek(0)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return zip_members(file)
    opener = next((opener for magic, opener in OPENERS.items() if head.startswith(magic)), None)
    return tar_members(opener(file) if opener else file)


def zip_members(file: IO[bytes]) -> Iterator[Member]:
    """Yield the members of a zip archive."""
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            mode = stat.S_IFMT(info.external_attr >> 16)
            kind = {0: "file", stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "a link"}.get(
                mode, "a device"
            )
            if info.flag_bits & 1:
                kind = "encrypted"
            # Some programs on Windows write backslashes.
            name = info.filename.replace("\\", "/")
            if kind == "file" and name.endswith("/"):
                kind = "folder"
            yield Member(name, info.file_size, kind, partial(archive.open, info))


def tar_members(stream: IO[bytes]) -> Iterator[Member]:
    """Yield the members of a tar archive, each to be read before the next."""
    guarded = Guarded(stream)
    guarded.limit = HEADER_BYTES
    with tarfile.open(fileobj=cast("IO[bytes]", guarded), mode="r|") as archive:
        while (info := archive.next()) is not None:
            guarded.limit = guarded.count + max(info.size, 0) + HEADER_BYTES
            vars(archive)["members"].clear()  # It would keep them all in memory.
            yield Member(info.name, info.size, kind_of(info), partial(open_file, archive, info))


def kind_of(info: tarfile.TarInfo) -> str:
    """Return what a member of a tar archive is."""
    if info.issym() or info.islnk():
        return f"a link to {printable(info.linkname)[:100]}"
    if info.issparse():
        return "a sparse file"
    if info.isdir():
        return "folder"
    return "file" if info.isreg() else "a device"


def open_file(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    """Return the content of a member that Python's own filter for foreign archives accepts as well."""
    content = archive.extractfile(tarfile.data_filter(info, "/nowhere"))
    assert content is not None, "only links and folders have no content"
    return content


class Guarded(io.RawIOBase):
    """Read a decompressed stream up to `limit`, because tarfile reads a header of any size into the memory."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.count, self.limit = stream, 0, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self.stream.read(len(buffer))
        self.count += len(part)
        if self.count > self.limit:
            raise UserError(f"it has a header of more than {HEADER_BYTES:,} bytes")
        buffer[: len(part)] = part
        return len(part)


def open_zstd(file: IO[bytes]) -> IO[bytes]:
    """Return the content of a Zstandard file; Python before 3.14 cannot read it."""
    try:
        return cast("IO[bytes]", import_module("compression.zstd").open(file))
    except ImportError:
        raise UserError(
            "it is compressed with Zstandard, which Python reads since 3.14; use gzip, bzip2 or xz"
        ) from None


OPENERS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"\x28\xb5\x2f\xfd": open_zstd,
}
