"""HTML pages from the templates in this folder: every string is escaped, a missing value is an error."""

from pathlib import Path
from typing import Any

import jinja2

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def page(template: str, **values: Any) -> str:
    """A template, filled in."""
    return _ENVIRONMENT.get_template(template).render(**values)
