"""How Sphinx builds the site from the pages that site_pages.py gathers."""

from __future__ import annotations

from typing import Any

from sphinx.ext.napoleon import GoogleDocstring

project = "dlrm-torchrec"
html_title = "dlrm-torchrec"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
add_module_names = False
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # those of other packages name sections of their own manuals
suppress_warnings = ["ref.python"]  # two modules may have a class of one name, and an annotation is just that name
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_domain_indices = False  # of modules, which the library has pages of
html_copy_source = False
html_show_copyright = False
myst_heading_anchors = 4
smartquotes = False  # they would turn the dashes of --options into others


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", read_sections)


def read_sections(_app: Any, what: str, _name: str, _of: Any, _options: Any, lines: list[str]) -> None:
    """Turns sections such as ``Args:`` into lists; the extension itself takes text before a colon for a type."""
    if what not in ("attribute", "property", "data"):
        lines[:] = GoogleDocstring(lines, what=what).lines()
