"""Translate pydantic's errors into messages about the fields of params.yaml."""

import re
from collections.abc import Sequence
from typing import Any

from stages.core.config.yaml_text import shorten
from stages.core.files.errors import redact

SHOWN_FIELDS = 20


def explain_all(details: Sequence[Any], content: Any, merged: Any) -> list[str]:
    """Return one line for each invalid field of `content`, the file, which was validated as `merged`, with defaults."""
    if isinstance(content, dict) and not isinstance(content.get("recipe_defaults"), dict):
        # Without defaults, every recipe lacks nearly everything.
        details = [detail for detail in details if detail["loc"][:1] != ("recipes",)]
    # A wrong default is also wrong in every recipe that does not override it, but it is in the file only once.
    lines = list(dict.fromkeys(explain(detail, content, merged) for detail in details))
    more = [f"  and {hidden} more"] if (hidden := len(lines) - SHOWN_FIELDS) > 0 else []
    return lines[:SHOWN_FIELDS] + more


def explain(detail: Any, content: Any, merged: Any) -> str:
    """Return the field as the file names it, what was found, and what is allowed."""
    kind, found = detail["type"], detail["input"]
    keys = find_keys(detail["loc"], merged, whole=kind == "value_error")
    if is_default(keys, kind, content, merged):
        keys = ["recipe_defaults", *keys[2:]]
        if kind == "union_tag_invalid":  # The recipe may have added values to the section.
            found = content["recipe_defaults"][keys[1]]
    if kind == "union_tag_not_found":
        keys, kind = [*keys, detail["ctx"]["discriminator"].strip("'")], "missing"
    field = ".".join(keys) or "the file"
    match kind:
        case "missing" if keys[:1] == ["recipes"] and is_left_out(["recipe_defaults", *keys[2:]], content):
            return f"  {field}: is missing, and recipe_defaults does not set it"
        case "missing":
            return f"  {field}: is missing"
        case "value_error":  # of several values together
            return f"  {field}: {detail['ctx']['error']}"
        case "extra_forbidden":
            return f"  {field}: found {shown(found)}, but there is no such key"
        case _:
            return f"  {field}: found {shown(found)}, {detail['msg'][0].lower()}{detail['msg'][1:]}"


def is_default(keys: list[str], kind: str, content: Any, merged: Any) -> bool:
    """Return whether the error at these keys of a recipe comes from `recipe_defaults`."""
    if keys[:1] != ["recipes"] or len(keys) < 3:
        return False
    match kind:
        case "missing":  # It is missing in the defaults if these have the section and the recipe adds to it.
            recipes = content.get("recipe_defaults", {}), merged["recipes"].get(keys[1], {})
            sections = [recipe.get(keys[2]) for recipe in recipes]
            return all(isinstance(section, dict) for section in sections) and len({*map(name_of, sections)}) == 1
        case "union_tag_invalid":
            return is_left_out([*keys, "name"], content)
        case "union_tag_not_found":  # Neither has the name; it is missing in the defaults if these have the section.
            return not is_left_out(["recipe_defaults", *keys[2:]], content)
        case _:
            return is_left_out(keys, content)


def name_of(section: Any) -> str:
    """Return the text of the section's name, which may be any value in a mistyped file."""
    return repr(section.get("name"))


def is_left_out(keys: list[str], content: Any) -> bool:
    """Return whether the file does not have the value at these keys, so that it comes from `recipe_defaults`."""
    for key in keys:
        if not isinstance(content, dict):
            return False
        if key not in map(str, content):
            return True
        content = content.get(key)
    return False


def find_keys(location: Sequence[Any], content: Any, *, whole: bool) -> list[str]:
    """Return the keys in the file that lead to pydantic's location, leaving out the members of unions.

    `whole` means that the location is that of a section, not of a key that may be missing from it.
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
    """Return the value as Python writes it, without secrets and shortened to fit into a message."""
    try:
        return shorten(redact(repr(value)))
    except ValueError:  # Python does not write an integer of more than 4300 digits.
        return f"a {type(value).__name__} that is too long to show"
