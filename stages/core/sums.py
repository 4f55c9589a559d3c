"""What each stage wrote, by sha256, so that the next one refuses anything else: a schema cannot see every changed byte.

artifacts/sums/STAGE.sha256 is what `sha256sum --check artifacts/sums/*` reads.
"""

import hashlib
from pathlib import Path

from stages.core.artifacts import replacing
from stages.core.errors import UserError

FOLDER = Path("artifacts/sums")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sums_of(stage: str) -> Path:
    return FOLDER / f"{stage}.sha256"


def record(stage: str, *outputs: Path) -> None:
    """Write the sums of these files, and of all files in these folders: all that `stage` has written."""
    files = [file for output in outputs for file in files_at(output)]
    lines = "".join(f"{sha256(file)}  {file.as_posix()}\n" for file in files).encode()
    with replacing(sums_of(stage)) as partial:
        partial.write_bytes(seal(lines) + lines)


def seal(lines: bytes) -> bytes:
    """The first line, for `sha256sum` a comment: the sha256 of all others."""
    return f"# {hashlib.sha256(lines).hexdigest()}\n".encode()


def verify(stage: str, *inputs: Path) -> None:
    """Raise `UserError` where one of these files and folders is not, byte for byte, what `stage` has written."""
    path = sums_of(stage)
    if not path.exists():
        raise UserError(f"{path} not found: stage '{stage}' has not run to its end; `dvc repro {stage}` runs it")
    content = path.read_bytes()
    _, _, lines = content.partition(b"\n")
    if content != seal(lines) + lines:
        raise UserError(f"{path} is damaged: its first line is not the sum of the others; {mended_by(stage, path)}")
    recorded = {name: digest for digest, _, name in (line.partition("  ") for line in lines.decode().splitlines())}
    for given in inputs:
        names = [name for name in recorded if name == given.as_posix() or name.startswith(f"{given.as_posix()}/")]
        if not names:
            raise UserError(f"{path} does not name {given}; {mended_by(stage, given)}")
        found = {file.as_posix() for file in files_at(given)}
        for name in [*names, *sorted(found.difference(names))]:
            if name not in found:
                reason = "is a folder" if Path(name).is_dir() else "is missing"
            elif name not in recorded:
                reason = f"is no file that stage '{stage}' wrote"
            elif (digest := sha256(Path(name))) != recorded[name]:
                reason = f"is not what stage '{stage}' wrote: its sha256 is {digest}, not {recorded[name]}"
            else:
                continue
            raise UserError(f"{name} {reason}; {mended_by(stage, given)}")


def digest(stage: str, *outputs: Path) -> str:
    """One sha256 of all that `stage` has written, or of these files and folders of it."""
    if not outputs:
        return sha256(sums_of(stage))
    lines = [
        line
        for line in sums_of(stage).read_text(encoding="utf-8").splitlines()
        if any(Path(line.partition("  ")[2]).is_relative_to(output) for output in outputs)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def files_at(path: Path) -> list[Path]:
    """The file itself, or every file in the folder, in a stable order."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [path] if path.exists() else []


def mended_by(stage: str, path: Path) -> str:
    return f"remove it and `dvc checkout {path}` brings it back, or `dvc repro --force {stage}` makes it anew"
