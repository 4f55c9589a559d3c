"""Save a checkpoint after each epoch, so that a training run that was killed can be resumed.

Checkpoints are kept outside of DVC's outputs, which are removed before a stage runs. Their names depend on everything
that affects the result, so a run with other data, params, code or versions never finds them.
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

from stages.core.files.atomic import replacing
from stages.core.files.exclusive import locked
from stages.core.files.layout import CHECKPOINTS

MAX_AGE_S = 7 * 24 * 3600  # A checkpoint that nobody has resumed for this long is removed.


def fingerprint(**ingredients: Any) -> str:
    """Return the sha256 of the ingredients (JSON values), of this project's loaded modules and of the versions."""
    loaded = {name: module.__file__ for name, module in sys.modules.items() if name.startswith("stages.")}
    files = sorted(file for file in {*loaded.values(), sys.modules["__main__"].__dict__.get("__file__")} if file)
    code = hashlib.sha256(b"\0".join(Path(file).read_bytes() for file in files)).hexdigest()
    versions = {"torch": torch.__version__, "torchvision": version("torchvision"), "python": platform.python_version()}
    named = json.dumps({**ingredients, "code": code, "versions": versions}, sort_keys=True)
    return hashlib.sha256(named.encode()).hexdigest()


@contextmanager
def claim_checkpoint(key: str) -> Iterator[Path | None]:
    """Yield the path of this training run's checkpoint, or None while another process trains the same run.

    The checkpoint is removed when the block ends without an exception.
    """
    remove_old_checkpoints()
    path = CHECKPOINTS / f"{key}.pt"
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path.with_suffix(".lock")))
        except BlockingIOError:
            yield None
            return
        yield path
        remove_checkpoint(path)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint whose lock this process holds, a half-written copy left by a kill, and the lock."""
    for file in (path, path.with_suffix(".pt.partial"), path.with_suffix(".lock")):
        file.unlink(missing_ok=True)


def remove_old_checkpoints() -> None:
    """Remove checkpoints that nobody has resumed for `MAX_AGE_S`."""
    for lock in CHECKPOINTS.glob("*.lock"):
        path = lock.with_suffix(".pt")
        # Another process may be removing the same files.
        with suppress(FileNotFoundError, BlockingIOError):
            if time.time() - (path if path.exists() else lock).stat().st_mtime > MAX_AGE_S:
                with locked(lock):
                    remove_checkpoint(path)


def save_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a file that begins with its own sha256, because PyTorch does not notice every flipped bit."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with replacing(path) as partial:
        partial.write_bytes(hashlib.sha256(buffer.getbuffer()).digest() + buffer.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return a saved checkpoint; None if there is no file or, with a message, if it is damaged."""
    if not path.exists():
        return None
    saved = path.read_bytes()
    digest, content = saved[:32], saved[32:]
    if hashlib.sha256(content).digest() != digest:
        print(f"train: {path} is damaged and ignored; the training run starts from scratch", flush=True)
        return None
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
