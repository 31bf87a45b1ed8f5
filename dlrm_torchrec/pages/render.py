"""Web pages from templates: each is one document that needs no other file and no network.

A page allows no script; a template that has one allows it by its digest in the block ``allowed``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

KIT = Path(__file__).parent  # its templates: page.html, which others extend, page.css, and the parts in parts.html


def render(template: Path, **values: Any) -> str:
    """The document that ``template`` makes of ``values``.

    Texts are escaped. A template finds those of the kit, and those in its own folder, by name.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, KIT]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    return environment.get_template(template.name).render(values)


def percent(share: float) -> str:
    """A length in CSS, from 0 to 1 of the whole."""
    return f"{100 * share:.4g}%"
