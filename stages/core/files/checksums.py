"""Record the checksums of each stage's outputs, and verify them: a schema cannot detect every changed byte.

The list of a stage's outputs is a file that `sha256sum --check` reads in its own folder. It is written last, so it also
shows that the stage finished.
"""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from stages.core.files.atomic import replacing
from stages.core.files.errors import UserError
from stages.core.files.exclusive import is_main_process
from stages.core.files.started import STARTED

IN_GIT = ("details", "metrics")  # the folders whose files dvc.yaml leaves to git: DVC's cache does not hold them


class Outputs(NamedTuple):
    """Hold the name of a stage, the file with the checksums of its outputs, and the folder for all stages' times."""

    stage: str
    checksums: Path
    times: Path

    def record(self, *outputs: Path) -> None:
        """Write the checksums of these files, and of all files in these folders, and note how long the stage took."""
        names = [file for output in outputs for file in files_at(output) if file != self.checksums]
        folder = self.checksums.parent
        text = "".join(f"{sha256(file)}  {Path(os.path.relpath(file, folder)).as_posix()}\n" for file in names)
        lines = text.encode()
        with replacing(self.checksums) as partial:
            partial.write_bytes(self.seal(lines) + lines)
        if is_main_process():
            self.note_time()

    def read(self) -> dict[Path, str]:
        """Return the recorded checksums by file; raise `UserError` if the list is missing or damaged."""
        path = self.checksums
        if not path.exists():
            raise UserError(
                f"{path} not found: stage '{self.stage}' has not finished; `dvc repro {self.stage}` runs it"
            )
        content = path.read_bytes()
        _, _, lines = content.partition(b"\n")
        if content != self.seal(lines) + lines:
            expected = "the stage and the checksum of the other lines"
            raise UserError(f"{path} is damaged: its first line is not {expected}; {self.remedy(path)}")
        entries = (line.partition("  ") for line in lines.decode().splitlines())
        return {Path(os.path.normpath(path.parent / name)): checksum for checksum, _, name in entries}

    def seal(self, lines: bytes) -> bytes:
        """Return the first line, a comment for `sha256sum`: the stage, and the sha256 of all other lines."""
        return f"# {self.stage} {hashlib.sha256(lines).hexdigest()}\n".encode()

    def verify(self, *inputs: Path) -> None:
        """Raise `UserError` unless each of these files and folders is, byte for byte, what the stage wrote."""
        recorded = self.read()
        for given in inputs:
            expected = [file for file in recorded if file.is_relative_to(given)]
            if not expected:
                raise UserError(f"{self.checksums} does not list {given}; {self.remedy(given)}")
            found = set(files_at(given)) - {self.checksums}
            for file in [*expected, *sorted(found.difference(expected))]:
                if file not in found:
                    reason = "is a folder" if file.is_dir() else "is missing"
                elif file not in recorded:
                    reason = f"is not a file that stage '{self.stage}' wrote"
                elif (checksum := sha256(file)) != recorded[file]:
                    reason = f"is not what stage '{self.stage}' wrote: its sha256 is {checksum}, not {recorded[file]}"
                else:
                    continue
                raise UserError(f"{file} {reason}; {self.remedy(given)}")

    def digest(self, *outputs: Path) -> str:
        """Return one sha256 of everything that the stage wrote, or of these files and folders."""
        files = [
            f"{checksum}  {file.as_posix()}"
            for file, checksum in self.read().items()
            if not outputs or any(file.is_relative_to(output) for output in outputs)
        ]
        return hashlib.sha256("\n".join(files).encode()).hexdigest()

    def remedy(self, path: Path) -> str:
        """Return the part of a message that says how to restore a damaged file."""
        again = f"`dvc repro --force {self.stage}` writes it again"
        if path.parent.name in IN_GIT:
            return f"`git checkout {path}` restores the committed one, or {again}"
        return f"remove it and `dvc checkout {path}` restores it, or {again}"

    def note_time(self) -> None:
        """Note the seconds since this process began to import the stage.

        Times differ between runs, so they are not an output, and no stage depends on them.
        """
        seconds = time.time() - STARTED
        note = {"seconds": round(seconds, 1), "wrote": self.digest()}
        with suppress(OSError):  # The outputs are complete, with or without this note.
            self.times.mkdir(parents=True, exist_ok=True)
            (self.times / f"{self.stage}.json").write_text(json.dumps(note) + "\n")

    def read_time(self) -> float | None:
        """Return the seconds that it took to write the present outputs; None if that was not noted."""
        try:
            note = json.loads((self.times / f"{self.stage}.json").read_text())
            return float(note["seconds"]) if note["wrote"] == self.digest() else None
        except (OSError, UserError, ValueError, KeyError, TypeError):
            return None


def sha256(path: Path) -> str:
    """Return the checksum of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_at(path: Path) -> list[Path]:
    """Return the file itself, or every file in the folder, in a stable order."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [path] if path.exists() else []
