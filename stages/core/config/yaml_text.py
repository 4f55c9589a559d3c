"""Parse YAML written by hand; reject aliases, tags, deep nesting and long values."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

from stages.core.files.errors import UserError, redact

MAX_BYTES = 1 << 20  # of a file
MAX_DEPTH = 16  # levels of nesting
MAX_CHARS = 2000  # of one value
SHOWN_CHARS = 200  # of a value in a message


def read_text(path: Path) -> str:
    """Return the text of a file; raise `UserError` if it is not a file, too large or not UTF-8."""
    size = path.stat().st_size
    if not path.is_file():
        raise UserError(f"{path} is not a file")
    if size > MAX_BYTES:
        raise UserError(f"{path} has {size:,} bytes, allowed: at most {MAX_BYTES:,}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error


def parse_yaml(text: str, yaml: YAML, source: str) -> Any:
    """Return the content of one YAML document; raise a `UserError` that names `source` if it is invalid."""
    try:
        problem = find_problem(text)
        content = None if problem else yaml.load(text)
    except (YAMLError, ValueError) as error:  # An impossible date is a plain ValueError.
        raise UserError(f"{source} is not valid YAML: {redact(str(error))}") from None
    if problem:
        raise UserError(f"{source} is invalid:\n  {problem}")
    return content


def find_problem(text: str) -> str | None:
    """Return the line and the reason of the first alias, tag, long value or deep nesting; None if there is none."""
    depth = 0
    for event in YAML(typ="safe").parse(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        line = f"line {event.start_mark.line + 1}"
        if isinstance(event, AliasEvent):
            return f"{line}: found an alias, '*{event.anchor}'; allowed: the value itself"
        if tag := getattr(event, "tag", None):
            return f"{line}: found a tag, '{shorten(tag)}'; allowed: plain values"
        if depth > MAX_DEPTH:
            return f"{line}: nested more than {MAX_DEPTH} deep"
        if len(value := getattr(event, "value", "")) > MAX_CHARS:
            return f"{line}: found a value of {len(value):,} characters, allowed: at most {MAX_CHARS:,}"
    return None


def shorten(text: str) -> str:
    """Return the text, truncated to fit into a message."""
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."
