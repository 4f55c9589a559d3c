"""Unfinished trainings, kept after each epoch, so that a killed one goes on where it was.

They lie outside of DVC's outs, which are removed before a stage runs, and are named after all that the result depends
on: a training with other data, params, code or versions never finds them.
"""

import hashlib
import io
import json
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from stages.core.artifacts import locked, replacing

FOLDER = Path("artifacts/checkpoints")
KEPT_S = 7 * 24 * 3600  # for an unfinished training that nobody has gone on with


def fingerprint(**ingredients: Any) -> str:
    """sha256 of the ingredients, which JSON can hold, of this project's modules as loaded, and of the versions."""
    loaded = {name: module.__file__ for name, module in sys.modules.items() if name.startswith("stages.")}
    files = sorted(file for file in {*loaded.values(), sys.modules["__main__"].__dict__.get("__file__")} if file)
    code = hashlib.sha256(b"\0".join(Path(file).read_bytes() for file in files)).hexdigest()
    versions = {"torch": torch.__version__, "torchvision": version("torchvision"), "python": platform.python_version()}
    named = json.dumps({**ingredients, "code": code, "versions": versions}, sort_keys=True)
    return hashlib.sha256(named.encode()).hexdigest()


@contextmanager
def claimed(key: str) -> Iterator[Path | None]:
    """The path of this training's checkpoint, or None while another process is at the same training.

    It is removed when the training ends without an exception.
    """
    forget_old()
    path = FOLDER / f"{key}.pt"
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path.with_suffix(".lock")))
        except BlockingIOError:
            yield None
            return
        yield path
        forget(path)


def forget(path: Path) -> None:
    """Remove a checkpoint whose lock is held, a half-written one of a killed training, and the lock."""
    for file in (path, path.with_suffix(".pt.partial"), path.with_suffix(".lock")):
        file.unlink(missing_ok=True)


def forget_old() -> None:
    for lock in FOLDER.glob("*.lock"):
        path = lock.with_suffix(".pt")
        # another process may be removing the same
        with suppress(FileNotFoundError, BlockingIOError):
            if time.time() - (path if path.exists() else lock).stat().st_mtime > KEPT_S:
                with locked(lock):
                    forget(path)


def save(content: dict[str, Any], path: Path) -> None:
    """A file of its own sha256, then what torch saves: torch does not notice every flipped bit."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with replacing(path) as partial:
        partial.write_bytes(hashlib.sha256(buffer.getbuffer()).digest() + buffer.getbuffer())


def load(path: Path) -> dict[str, Any] | None:
    """What was saved; None, with a message, where the file is damaged, and without one where there is none."""
    if not path.exists():
        return None
    saved = path.read_bytes()
    digest, content = saved[:32], saved[32:]
    if hashlib.sha256(content).digest() != digest:
        print(f"train: {path} is damaged and ignored, the training begins anew", flush=True)
        return None
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
