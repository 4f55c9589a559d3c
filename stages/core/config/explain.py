"""Explain what pydantic found wrong in params.yaml, in the words of the file."""

import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from stages.core.config.yaml_text import shortened
from stages.core.files.errors import redacted

SHOWN_FIELDS = 20


def explain_all(error: ValidationError, content: Any, merged: Any) -> list[str]:
    """Return one line for each wrong field of the file's content, which was validated as `merged` with defaults."""
    # A wrong default is wrong in every recipe that does not override it, but it stands in the file once.
    lines = list(dict.fromkeys(explain(detail, content, merged) for detail in error.errors()))
    more = [f"  and {hidden} more"] if (hidden := len(lines) - SHOWN_FIELDS) > 0 else []
    return lines[:SHOWN_FIELDS] + more


def explain(detail: Any, content: Any, merged: Any) -> str:
    """Return the field as it stands in the file, what was found, and what is allowed."""
    keys = find_keys(detail["loc"], merged, whole=detail["type"] == "value_error")
    if detail["type"] != "missing" and is_inherited(keys, content):
        keys = ["recipe_defaults", *keys[2:]]
    field = ".".join(keys) or "the file"
    match detail["type"]:
        case "missing" if keys[:1] == ["recipes"] and len(keys) > 2:
            return f"  {field}: is missing, and recipe_defaults does not state it"
        case "missing":
            return f"  {field}: is missing"
        case "value_error":  # of several values together
            return f"  {field}: {detail['ctx']['error']}"
        case "extra_forbidden":
            return f"  {field}: found {shown(detail['input'])}, but there is no such key"
        case _:
            return f"  {field}: found {shown(detail['input'])}, {detail['msg'][0].lower()}{detail['msg'][1:]}"


def is_inherited(keys: list[str], content: Any) -> bool:
    """Return whether a recipe leaves out the value at these keys, so that it comes from `recipe_defaults`."""
    if keys[:1] != ["recipes"]:
        return False
    for key in keys:
        if not isinstance(content, dict):
            return False
        if key not in content:
            return True
        content = content[key]
    return False


def find_keys(location: Sequence[Any], content: Any, *, whole: bool) -> list[str]:
    """Return the keys in the file that lead to pydantic's location, without the members of unions in it.

    `whole` tells that the location is of a section, not of a key that may be missing in it.
    """
    keys: list[str] = []
    last = len(location) - 1
    for index, part in enumerate(location):
        inner = index < last or whole
        tag = isinstance(content, dict) and part in (content.get("name"), content.get("kind"))
        if not isinstance(content, (dict, list)) or (
            inner and (tag or (isinstance(content, dict) and part not in content))
        ):
            continue
        keys.append(str(part) if re.fullmatch(r"[\w-]{1,64}", str(part)) else shown(part))
        if inner:
            content = content[part]
    return keys


def shown(value: Any) -> str:
    """Return the value as Python writes it, without secrets and without what a message has no room for."""
    try:
        return shortened(redacted(repr(value)))
    except ValueError:  # Python does not write an integer of more than 4300 digits.
        return f"a {type(value).__name__} that is too long to show"
