"""What could run somebody else's code, and what could tell a secret."""

import ast
import json
import re
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.config.params import load_dataset, load_params
from stages.core.deploy.onnx_model import OnnxModel
from stages.core.files.arrays import map_array
from stages.core.files.errors import UserError, redact
from tests.conftest import PROJECT, Clone, write_params
from tests.core.deploy.test_onnx_model import ours
from tests.faults.counts import Faults
from tests.faults.test_bad_input import fuzzed
from tests.test_download import Trap

# what can run code that it finds in data, and by which argument it does not
LOADERS = {
    "torch.load": ("weights_only", True),
}
FORBIDDEN = {
    "eval",
    "exec",
    "np.load",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "marshal.loads",
    "yaml.unsafe_load",
    "shelve.open",
}


def calls(module: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_no_loader_runs_code() -> None:
    """In all code that is not for measurements and tests; the pickles of data sets are read by formats.ArraysOnly."""
    seen = set()
    for module in sorted(
        path for folder in ("stages", "flows", "serving") for path in (PROJECT / folder).rglob("*.py")
    ):
        for name, call in calls(module):
            assert name not in FORBIDDEN, f"{module}:{call.lineno}"
            for loader, (argument, value) in LOADERS.items():
                if name.endswith(loader):
                    safe = [keyword for keyword in call.keywords if keyword.arg == argument]
                    assert [ast.literal_eval(keyword.value) for keyword in safe] == [value], f"{module}:{call.lineno}"
                    seen.add(loader)
    assert seen == set(LOADERS)


def test_a_pickle_in_an_array(faults: Faults, tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "train.npy"
    np.save(path, np.array([Trap(marker)], dtype=object), allow_pickle=True)
    with faults.tried("pickle among tensors"), pytest.raises(UserError, match=r"train\.npy is damaged: "):
        map_array(path, (1,), np.uint8)
    assert not marker.exists()
    np.load(path, allow_pickle=True)
    assert marker.exists(), "the trap itself does not work"


OURS = ours().SerializeToString()


@fuzzed
@given(st.integers(0, len(OURS)), st.integers(0, 8), st.binary(max_size=8))
def test_any_onnx_file(faults: Faults, tmp_path: Path, start: int, length: int, inserted: bytes) -> None:
    """Refused by name, or a model that passed all checks: no crash, no other exception."""
    path = tmp_path / "model.onnx"
    path.write_bytes(OURS[:start] + inserted + OURS[start + length :])
    with faults.tried("ONNX file with any bytes in any place"):
        refusal = f"{path} "
        try:
            OnnxModel(path)
        except UserError as error:
            refusal = str(error)
        assert refusal.startswith(str(path))


def test_every_pin_has_a_hash_and_names_no_host() -> None:
    text = (PROJECT / "requirements.lock").read_text()
    pins = [pin for pin in re.split(r"\n(?=\S)", text) if not pin.startswith("#")]
    assert len(pins) > 100
    for pin in pins:
        assert re.match(r"[a-z0-9-]+(\[[a-z0-9,-]+\])?==[^\s;]+", pin), pin
        assert "--hash=sha256:" in pin, pin
    assert "://" not in text
    # of all options, those that name an index, a folder or a trusted host among them, the hash alone
    assert set(re.findall(r"(?<=\s)-{1,2}[a-z][a-z-]*", text)) == {"--hash"}


class Advisories(BaseHTTPRequestHandler):
    """A source that knows of one vulnerability, in `vulnerable`."""

    vulnerable = ""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]
        known = {
            "id": "GHSA-0000",
            "summary": "made up",
            "affected": [{"package": asked, "ranges": [], "versions": []}],
        }
        body = json.dumps({"vulns": [known]} if asked["name"] == self.vulnerable else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it
        pass


@pytest.mark.slow
@pytest.mark.xdist_group("audit")  # They write to one log.
@pytest.mark.parametrize(
    ("vulnerable", "status", "said"),
    [
        ("", 0, ""),
        ("aiohttp", 2, "GHSA-0000"),
        (None, 0, "audit: skipped, because no vulnerability database can be reached from here"),
    ],
    ids=["none", "one", "unreachable"],
)
def test_audit(monkeypatch: pytest.MonkeyPatch, vulnerable: str | None, status: int, said: str) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Advisories) as server:
        if vulnerable is not None:
            Advisories.vulnerable = vulnerable
            Thread(target=server.serve_forever, daemon=True).start()
        else:
            server.socket.close()
        done = subprocess.run(
            ["make", "--no-print-directory", "--assume-old=.venv/installed", "audit"],
            cwd=PROJECT,
            check=False,
            env=Clone.environment({"PIP_AUDIT_OSV_URL": f"http://127.0.0.1:{server.server_port}"}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if vulnerable is not None:
            server.shutdown()
    assert said in done.stdout
    assert ("skipped" in done.stdout) == (vulnerable is None)
    assert done.returncode == status, done.stdout


SECRET = "http://user:s3cr3t@127.0.0.1:9/data?token=s3cr3t"


@pytest.mark.parametrize(
    "source",
    [
        {"kind": "url", "url": SECRET, "other": 1},
        {"kind": "ftp", "url": SECRET},
        {"kind": "url", "urls": SECRET},
        {"url": SECRET},
        {"kind": "url", "url": [SECRET]},
        SECRET,
        {"kind": "pip", "package": SECRET},
    ],
)
def test_no_secret_in_a_refusal_of_a_source(workspace: Path, params: dict[str, Any], source: Any) -> None:
    params["datasets"]["tiny"]["sources"] = [source]
    write_params(params, workspace)
    with pytest.raises(UserError) as refused:
        load_dataset(load_params())
    assert "s3cr3t" not in str(refused.value)


@pytest.mark.parametrize("text", [f"seed: [{SECRET}", f"url: {SECRET}\nurl: {SECRET}", f"url: {{{SECRET}: *{SECRET}"])
def test_no_secret_in_a_refusal_of_yaml(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError) as refused:
        load_params(tmp_path / "params.yaml")
    assert "s3cr3t" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("plain text, with a @ and a ?", "plain text, with a @ and a ?"),
        ("at https://host/folder, not there", "at https://host/folder, not there"),
        ("https://user:pass@host/a?token=x#y failed", "https://***@host/a?*** failed"),
        ("url='s3://key:p@ss/word@bucket/a'", "url='s3://***@bucket/a'"),
        ("https://a?x=1 and https://u@b", "https://a?*** and https://***@b"),
        ("https://user:pa'ss@host/data", "https://***@host/data"),
        ("https://user:pa#s?s@host", "https://***@host"),
        ("'https://host/a?token=ab'cd', not there", "'https://host/a?***', not there"),
    ],
)
def test_redacted(text: str, safe: str) -> None:
    assert redact(text) == safe
