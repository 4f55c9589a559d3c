"""What a metrics file was made from, so that a surprising `dvc metrics diff` can be explained."""

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

CODE = Path(__file__).parents[1]
SOURCES = (".py", ".jinja")
SHOWN = 12  # characters of a hash


def made_from(data_sha256: str, settings: Mapping[str, Any], device: torch.device) -> dict[str, str]:
    """Hashes of data, settings and code; versions; the device, with the threads that share its sums on a CPU.

    `code` is git's name for the tree `stages/` as it lies there, committed or not: of a revision it is
    `git rev-parse REVISION:stages`, and `git log --find-object=CODE -t` finds the commit.
    """
    named = json.dumps(settings, sort_keys=True).encode()
    return {
        "data": data_sha256[:SHOWN],
        "settings": hashlib.sha256(named).hexdigest()[:SHOWN],
        "code": git_tree(CODE).hex()[:SHOWN],
        "versions": f"python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("torch", "onnxruntime")),
        "device": describe(device),
    }


def git_tree(folder: Path) -> bytes:
    """git's object name of a folder that holds modules and templates, and such folders (Pro Git, "Git Objects")."""
    entries = {}
    for path in folder.iterdir():
        if path.suffix in SOURCES:
            entries[path.name] = b"100644 " + path.name.encode() + b"\0" + git_object(b"blob", path.read_bytes())
        elif path.is_dir() and any(path.glob("*.py")):
            entries[f"{path.name}/"] = b"40000 " + path.name.encode() + b"\0" + git_tree(path)
    return git_object(b"tree", b"".join(entries[name] for name in sorted(entries)))


def git_object(kind: bytes, content: bytes) -> bytes:
    return hashlib.sha1(b"%s %d\0%s" % (kind, len(content), content), usedforsecurity=False).digest()


def describe(device: torch.device) -> str:
    match device.type:
        case "cuda":
            return torch.cuda.get_device_name(device)
        case "cpu":
            threads = torch.get_num_threads()
            return f"{processor()}, {threads} thread{'s' if threads > 1 else ''}"
        case kind:
            return f"{processor()}, {kind}"


def processor() -> str:
    """The name that the processor gives itself, and which of its instructions PyTorch uses: sums depend on them."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    name = next(named, platform.processor() or platform.machine())
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
