"""Write docs/configuration-reference.md from the classes that validate the settings: `python -m docs.reference`."""

import ast
import inspect
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic.fields import FieldInfo

from stages.core.config.params import Params
from stages.core.config.section import Section
from stages.core.data.config import Dataset

PAGE = Path("docs/configuration-reference.md")
INTRODUCTION = """\
# Configuration reference

Every field of `params.yaml` and of `data/NAME/dataset.yaml`. `python -m docs.reference` generates this page from the
classes that validate these files.
[Configuration](configuration.md) explains how to change a field.

In `params.yaml`, only recipes may leave out fields: those for which `recipe_defaults` has a value. In `dataset.yaml`,
every field may be left out.
"""
NAMES = {int: "integer", float: "number", bool: "boolean", str: "text", NoneType: "null"}


def main() -> None:
    PAGE.write_text(render(), encoding="utf-8")


def render() -> str:
    """Return the page."""
    lines = [INTRODUCTION, *section("", "Top level", Params)]
    for name, field in Params.model_fields.items():
        match get_args(field.annotation):
            case (_, kind) if get_origin(field.annotation) is dict and is_section(kind):
                lines += tables(f"{name}.NAME", kind)
            case _ if is_section(field.annotation):
                lines += tables(name, field.annotation)
    lines += tables("dataset.yaml", Dataset)
    return "\n".join(lines)


def tables(path: str, kind: Any) -> Iterator[str]:
    """Yield the table of a section, and those of the sections in it."""
    yield from section(path, f"`{path}`", kind)
    for name, field in kind.model_fields.items():
        variants = find_sections(field.annotation)
        for variant in variants:
            if len(variants) == 1:
                yield from tables(f"{path}.{name}", variant)
            else:
                tag, labels = find_tag(variant)
                title = f"`{path}.{name}` with {tag} {' or '.join(f'`{label}`' for label in labels)}"
                yield from section(f"{path}.{name}", title, variant)


def section(path: str, title: str, kind: type[Section]) -> Iterator[str]:
    """Yield the heading and the table of one section."""
    yield f"## {title}\n"
    if path:
        yield f"{' '.join((inspect.getdoc(kind) or '').split())}\n"
    descriptions = read_descriptions(kind)
    own = {name: field for name, field in kind.model_fields.items() if name in descriptions}
    rows = [(f"`{name}`", describe_type(field), descriptions[name]) for name, field in own.items()]
    yield "| Field | Allowed | Meaning |\n|---|---|---|"
    yield from (f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in rows)
    yield ""


def read_descriptions(kind: type[Section]) -> dict[str, str]:
    """Return the docstring below each field of a class; the field that distinguishes variants needs none.

    The fields of a class that it extends are left out if that class has a table of its own.
    """
    (definition,) = ast.parse(dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    elsewhere = {Section, *(field.annotation for field in Params.model_fields.values())}
    found: dict[str, str] = {}
    for extended in kind.__bases__:
        if extended not in elsewhere:
            found |= read_descriptions(extended)
    for statement, below in pairwise([*definition.body, ast.Pass()]):
        match statement, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
            case ast.AnnAssign(target=ast.Name(id="name" | "kind" as name)), _:
                found[name] = "The kind of section."
    return found


def describe_type(field: FieldInfo) -> str:
    """Return the values that a field takes, in words."""
    if (variants := find_sections(field.annotation)) and len(variants) > 1:
        labels = [label for variant in variants for label in find_tag(variant)[1]]
        is_list = get_origin(field.annotation) is list
        many = f"list{describe_bounds(field.metadata, ' items')}; each item: a section" if is_list else "a section"
        return f"{many} of kind {', '.join(f'`{label}`' for label in labels)}"
    return describe_annotation(field.annotation, field.metadata)


def describe_annotation(annotation: Any, metadata: list[Any]) -> str:
    """Return the type with its bounds, such as `integer, > 0 and ≤ 64`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return describe_annotation(arguments[0], [*arguments[1:], *metadata])
    if is_section(annotation):
        return "a section"
    if origin is Literal:
        return (
            "one of " + ", ".join(f"`{choice}`" for choice in arguments) if len(arguments) > 1 else f"`{arguments[0]}`"
        )
    if origin is list:
        return f"list{describe_bounds(metadata, ' items')}; each item: {describe_annotation(arguments[0], [])}"
    if origin in (Union, UnionType):
        return " or ".join(describe_annotation(argument, []) for argument in arguments)
    return NAMES[annotation] + describe_bounds(metadata, " characters" if annotation is str else "")


def describe_bounds(metadata: list[Any], unit: str = "") -> str:
    """Return the bounds in pydantic's metadata of a field; `unit` is what a length counts."""
    bounds = []
    for constraint in flatten(metadata):
        match constraint:
            case Ge(ge=bound) | MinLen(min_length=bound):
                bounds.append(f"≥ {bound:,}")
            case Gt(gt=bound):
                bounds.append(f"> {bound:,}")
            case Le(le=bound) | MaxLen(max_length=bound):
                bounds.append(f"≤ {bound:,}")
            case Lt(lt=bound):
                bounds.append(f"< {bound:,}")
            case _ if pattern := getattr(constraint, "pattern", None):
                return f" matching `{pattern}`"
    return f", {' and '.join(bounds)}{unit}" if bounds else ""


def flatten(metadata: list[Any]) -> Iterator[Any]:
    """Yield the constraints, including those that a `Field` groups."""
    for constraint in metadata:
        yield from flatten(constraint.metadata) if isinstance(constraint, FieldInfo) else [constraint]


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def find_sections(annotation: Any) -> list[Any]:
    """Return the sections that a field may hold."""
    if is_section(annotation):
        return [annotation]
    return [section for argument in get_args(annotation) for section in find_sections(argument)]


def find_tag(variant: type[Section]) -> tuple[str, tuple[str, ...]]:
    """Return the field that distinguishes this variant from others, and its values."""
    tag = "name" if "name" in variant.model_fields else "kind"
    return tag, get_args(variant.model_fields[tag].annotation)


if __name__ == "__main__":
    main()
