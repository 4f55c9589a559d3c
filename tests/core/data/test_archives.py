"""Test archives of every kind, and what they may try: paths outside, links, devices, bombs, damage."""

import io
import re
import stat
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.data import archives
from stages.core.data.archives import unpack
from stages.core.files.errors import UserError

FILES = {"set/rose/1.png": b"a rose", "set/tulip/a/2.png": b"a tulip", "other/3.png": b"something else"}
SUFFIXES = ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"]


def write_tar(path: Path, *members: tuple[str | tarfile.TarInfo, bytes]) -> Path:
    mode = path.suffix[1:]
    with tarfile.open(path, "w" if mode == "tar" else f"w:{mode}") as archive:  # type: ignore[call-overload]
        for member, content in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            if isinstance(member, str):
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_zip(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members:
            archive.writestr(member, content, zipfile.ZIP_DEFLATED)
    return path


def write(path: Path, *members: tuple[str, bytes]) -> Path:
    return write_zip(path, *members) if path.suffix == ".zip" else write_tar(path, *members)


def read(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(archive: Path, folder: str | None = None) -> str:
    """Return the message of the refusal; nothing may lie outside of the target, and no link in it."""
    home = archive.parent
    before = {*home.parent.iterdir(), *home.iterdir()}
    with pytest.raises(UserError) as refusal:
        unpack(archive, home / "target", folder)
    assert {*home.parent.iterdir(), *home.iterdir()} - before == {home / "target"}
    assert not [path for path in home.rglob("*") if path.is_symlink()]
    return str(refusal.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_is_unpacked(tmp_path: Path, suffix: str) -> None:
    archive = write(tmp_path / f"a.{suffix}", *FILES.items())
    nameless = archive.rename(tmp_path / "archive")
    unpack(nameless, tmp_path / "target")
    assert read(tmp_path / "target") == FILES
    unpack(nameless, tmp_path / "part", "set/")
    assert read(tmp_path / "part") == {"rose/1.png": b"a rose", "tulip/a/2.png": b"a tulip"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_folder_that_does_not_exist_is_named_with_those_that_do(tmp_path: Path, suffix: str) -> None:
    archive = write(tmp_path / f"a.{suffix}", *FILES.items())
    assert refused(archive, "flowers") == "it has no folder flowers, found at the top: set, other"


def test_what_systems_add_is_left_out(tmp_path: Path) -> None:
    names = ["__MACOSX/rose/._1.png", "rose/.DS_Store", "rose/Thumbs.db", "rose/1.png"]
    unpack(write(tmp_path / "a.zip", *((name, b"x") for name in names)), tmp_path / "target")
    assert read(tmp_path / "target") == {"rose/1.png": b"x"}


def test_backslashes_of_windows_separate_folders(tmp_path: Path) -> None:
    unpack(write(tmp_path / "a.zip", ("rose\\1.png", b"x")), tmp_path / "target")
    assert read(tmp_path / "target") == {"rose/1.png": b"x"}


def test_a_name_that_is_not_utf_8_is_escaped(tmp_path: Path) -> None:
    name = b"ros\xe9/1.png".decode("utf8", "surrogateescape")
    unpack(write_tar(tmp_path / "a.tar", (name, b"x")), tmp_path / "target")
    assert read(tmp_path / "target") == {"ros\\xe9/1.png": b"x"}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["/tmp/trap.png", "../trap.png", "rose/../../trap.png", "C:/trap.png"])
def test_a_path_outside_is_refused(tmp_path: Path, suffix: str, name: str) -> None:
    (tmp_path / "home").mkdir()
    archive = write(tmp_path / f"home/a.{suffix}", ("rose/1.png", b"x"), (name, b"x"))
    message = refused(archive)
    assert message == f"{name} leads out of the archive; only relative paths without .. are allowed"
    assert not Path("/tmp/trap.png").exists()


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        (tarfile.SYMTYPE, "a link to /etc"),
        (tarfile.LNKTYPE, "a link to /etc"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a device"),
    ],
)
def test_special_files_in_a_tar_are_refused(tmp_path: Path, kind: bytes, found: str) -> None:
    special = tarfile.TarInfo("rose/special")
    special.type, special.linkname = kind, "/etc"
    archive = write_tar(tmp_path / "a.tar", (special, b""), ("rose/special/passwd", b"x"))
    assert refused(archive) == f"rose/special is {found}; only files and folders are allowed"


@pytest.mark.parametrize(
    ("mode", "found"), [(stat.S_IFLNK, "a link"), (stat.S_IFCHR, "a device"), (stat.S_IFIFO, "a device")]
)
def test_special_files_in_a_zip_are_refused(tmp_path: Path, mode: int, found: str) -> None:
    special = zipfile.ZipInfo("rose/special")
    special.external_attr = (mode | 0o777) << 16
    archive = write_zip(tmp_path / "a.zip", (special, b"/etc"))
    assert refused(archive) == f"rose/special is {found}; only files and folders are allowed"


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("a/1.png", b"x"), ("a/1.png", b"y")], "a/1.png is named twice, or is both a file and a folder"),
        ([("a", b"x"), ("a/1.png", b"y")], "a/1.png is named twice, or is both a file and a folder"),
        ([("a/1.png", b"x"), ("a", b"y")], "a is named twice, or is both a file and a folder"),
        ([("a" * 300, b"x")], "a... has a name that is too long"),
    ],
    ids=["twice", "file as folder", "folder as file", "long"],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_collide_are_refused(
    tmp_path: Path, suffix: str, members: list[tuple[str, bytes]], reason: str
) -> None:
    assert refused(write(tmp_path / f"a.{suffix}", *members)).endswith(reason)


@pytest.mark.parametrize("suffix", ["zip", "tar.gz", "tar.bz2", "tar.xz"])
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "HARMLESS_BYTES", 1 << 20)
    archive = write(tmp_path / f"a.{suffix}", ("rose/1.png", b"x"), ("rose/bomb.png", bytes(1 << 24)))
    message = refused(archive)
    assert re.fullmatch(r"it unpacks to more than [\d,]+ bytes, from [\d,]+, reached at rose/bomb.png", message)
    assert not (tmp_path / "target/rose/bomb.png").exists()


def test_the_limit_on_all_bytes_holds_for_any_ratio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 10)
    archive = write(tmp_path / "a.tar", ("a", b"12345"), ("b", b"123456"))
    assert refused(archive).startswith("it unpacks to more than 10 bytes, from 10,240, reached at b")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_number_of_members_is_limited(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    assert refused(write(tmp_path / f"a.{suffix}", *FILES.items())) == "it has more than 2 members"


@pytest.mark.parametrize("header", ["name", "pax"])
def test_a_header_that_would_fill_the_memory_is_refused(tmp_path: Path, header: str) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = (tarfile.GNUTYPE_LONGNAME if header == "name" else tarfile.XHDTYPE), 1 << 25
    archive = write_tar(tmp_path / "a.tar.gz", (info, b"x" * info.size))
    assert refused(archive) == "it has a header of more than 1,048,576 bytes"


def test_sparse_and_negative_sizes_are_refused(tmp_path: Path) -> None:
    sparse = tarfile.TarInfo("rose/1.png")
    sparse.type = tarfile.GNUTYPE_SPARSE
    assert "rose/1.png is a sparse file" in refused(write_tar(tmp_path / "a.tar", (sparse, b"")))
    (tmp_path / "negative").mkdir()
    negative = tarfile.TarInfo("rose/1.png")
    negative.size = -1
    content = negative.tobuf(tarfile.GNU_FORMAT) + bytes(10240)
    (tmp_path / "negative/a.tar").write_bytes(content)
    assert refused(tmp_path / "negative/a.tar")


@pytest.mark.parametrize(
    "content", [b"", b"<html>Sign in to this network</html>", bytes(5000), b"PK\x03\x04", b"\x1f\x8b"]
)
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "archive").write_bytes(content)
    assert re.match("it is damaged|it holds no files", refused(tmp_path / "archive"))


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    archive = write(tmp_path / "a.zip", ("rose/1.png", b"x"))
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    assert refused(archive) == "rose/1.png is encrypted; only files and folders are allowed"


def test_zstandard_is_refused_where_python_cannot_read_it(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))
    assert re.match("it is compressed with Zstandard|it is damaged", refused(tmp_path / "archive"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_any_damage_ends_in_a_refusal_or_in_files_within_the_folder(
    tmp_path_factory: pytest.TempPathFactory, suffix: str
) -> None:
    home = tmp_path_factory.mktemp("damaged")
    good = write(home / f"a.{suffix}", *FILES.items()).read_bytes()
    (home / f"a.{suffix}").unlink()

    @given(st.integers(0, len(good)), st.integers(0, 8), st.binary(max_size=8))
    def damage(start: int, length: int, inserted: bytes) -> None:
        inside = Path(home, str(len([*home.iterdir()])))
        inside.mkdir()
        (inside / "archive").write_bytes(good[:start] + inserted + good[start + length :])
        with suppress(UserError):
            unpack(inside / "archive", inside / "target")
        assert {path.name for path in inside.iterdir()} <= {"archive", "target"}
        assert not [path for path in inside.rglob("*") if path.is_symlink()]

    damage()
