"""Render the templates of the page and the model card."""

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape


def markdown(text: object) -> str:
    """Return the text on one line, with every character escaped that is special in Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<>#|&~])", r"\\\1", " ".join(str(text).split()))


def percent(share: float, digits: int = 2) -> str:
    """Format a share as a percentage."""
    return f"{share:.{digits}%}"


def load_templates() -> Environment:
    """Return the environment that renders the templates of this folder."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"percent": percent, "count": "{:,}".format, "markdown": markdown}
    return templates
