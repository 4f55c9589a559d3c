"""Record what a result was made from, so that a surprising `dvc metrics diff` can be explained."""

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

CODE = Path(__file__).parents[2]  # stages/
SOURCES = (".py", ".jinja")
SHOWN = 12  # characters of a hash


def made_from(data_sha256: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return hashes of the data, the settings and the code, and the versions that affect the numbers.

    `code` is git's name for the tree `stages/` as it is in the working folder, committed or not. `git rev-parse
    REVISION:stages` prints that of a revision, and `git log --find-object=CODE -t` finds its commit.
    """
    named = json.dumps(settings, sort_keys=True).encode()
    return {
        "data": data_sha256[:SHOWN],
        "settings": hashlib.sha256(named).hexdigest()[:SHOWN],
        "code": git_tree(CODE).hex()[:SHOWN],
        "versions": f"python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("numpy", "torch", "onnxruntime")),
    }


def git_tree(folder: Path) -> bytes:
    """Return git's object name of a folder of modules, templates and subfolders of them (Pro Git, "Git Objects")."""
    entries = {}
    for path in folder.iterdir():
        if path.suffix in SOURCES:
            entries[path.name] = b"100644 " + path.name.encode() + b"\0" + git_object(b"blob", path.read_bytes())
        elif path.is_dir() and any(path.glob("*.py")):
            entries[f"{path.name}/"] = b"40000 " + path.name.encode() + b"\0" + git_tree(path)
    return git_object(b"tree", b"".join(entries[name] for name in sorted(entries)))


def git_object(kind: bytes, content: bytes) -> bytes:
    """Return git's object name of this content, 20 bytes."""
    return hashlib.sha1(b"%s %d\0%s" % (kind, len(content), content), usedforsecurity=False).digest()
