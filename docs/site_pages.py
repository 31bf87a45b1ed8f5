"""The site: tutorials, how-to guides, explanation and reference, gathered and built by `make docs`.

    python docs/site_pages.py --output build/docs

Recipes, commands and the library document themselves: their pages are made of docstrings and options. The links of the
pages lead to files of the repository; this script turns them into links of the site.
"""

from __future__ import annotations

import argparse
import posixpath
import re
import shutil
import sys
from pathlib import Path

from recipe_pages import OPTIONS_PAGE, recipe_pages
from reference_pages import command_page, library_pages

HERE = Path(__file__).parent
ROOT = HERE.parent
RECIPES = ROOT / "recipes"
DOCUMENTS = {"RESULTS.md": "results.md", "LOG.md": "log.md", "CONTRIBUTING.md": "contributing.md"}
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")


def site_map() -> dict[str, str]:
    """The page of the site that shows each file of the repository; both paths are relative."""
    found = {f"docs/{page}": str(page) for page in (path.relative_to(HERE) for path in HERE.rglob("*.md"))}
    found |= {f"recipes/{path.name}": f"recipes/{path.stem}.md" for path in RECIPES.glob("*.py")}
    found |= {
        f"data/{path.parent.name}/README.md": f"data/{path.parent.name}.md" for path in ROOT.glob("data/*/README.md")
    }
    return found | DOCUMENTS


def gather() -> tuple[dict[str, str], dict[str, Path]]:
    """Markdown by its path in the site, and the files of the repository that it shows or offers, likewise."""
    shown = site_map()
    pages = {f"recipes/{name}": text for name, text in recipe_pages(RECIPES).items()}
    pages |= {f"library/{name}": text for name, text in library_pages().items()} | {"commands.md": command_page()}
    files = {f"recipes/source/{path.name}": path for path in RECIPES.glob("*.py")}
    for name in (name for name in shown if name.endswith(".md")):

        def site_link(link: re.Match[str], name: str = name) -> str:
            path = posixpath.normpath(posixpath.join(posixpath.dirname(name), link[1]))
            there = shown.get(path) or path.removeprefix("docs/")
            if path not in shown:
                files[there] = ROOT / path
            return posixpath.relpath(there, posixpath.dirname(shown[name]) or ".") + (link[2] or "")

        pages[shown[name]] = LINK.sub(site_link, (ROOT / name).read_text())
    pages["index.md"] += navigation(pages)
    return pages, files


def navigation(pages: dict[str, str]) -> str:
    """The table of contents beside every page: the parts of index.md in its order, then what is made from code."""
    recipes = sorted(page for page in pages if page.startswith("recipes/") and page != f"recipes/{OPTIONS_PAGE}")
    parts = {heading: listed for heading, listed in sections().items() if listed} | {
        "Recipes": ["recipes/index", *recipes, f"recipes/{OPTIONS_PAGE}"],
        "Commands and library": [
            "commands",
            "library/index",
            *sorted(page for page in pages if page[:8] == "library/"),
        ],
        "Data sets": sorted(page for page in pages if page.startswith("data/")),
        "What was measured": ["results", "log"],
        "Taking part": ["contributing"],
    }
    return "".join(
        f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n"
        + "".join(f"{page}\n" for page in dict.fromkeys(each.removesuffix(".md") for each in listed))
        + "```\n"
        for caption, listed in parts.items()
    )


def sections() -> dict[str, list[str]]:
    """The pages of docs/ that each part of index.md names; an index of a folder is followed by the pages it names."""
    parts = re.split(r"^## (.+)$", (HERE / "index.md").read_text(), flags=re.MULTILINE)
    found: dict[str, list[str]] = {}
    for heading, text in zip(parts[1::2], parts[2::2], strict=True):
        found[heading] = []
        for page in named(text):
            inside = named((HERE / page).read_text()) if page.endswith("/index.md") else []
            found[heading] += [page, *(f"{posixpath.dirname(page)}/{other}" for other in inside)]
    return found


def named(text: str) -> list[str]:
    """The pages of its own folder, and of folders below it, that a text links to."""
    return [link[1] for link in LINK.finditer(text) if link[1].endswith(".md") and not link[1].startswith("..")]


def write(folder: Path) -> None:
    """Writes what Sphinx reads; the folder holds nothing else afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    pages, files = gather()
    for name in (*pages, *files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        (folder / name).write_text(text)
    for name, path in files.items():
        shutil.copy(path, folder / name)


def main(output: Path) -> int:
    """Sphinx's exit code; a warning is an error."""
    from sphinx.cmd.build import build_main  # an extra: pages are gathered without it, in tests

    write(output / "source")
    how = ["--fail-on-warning", "--keep-going", "--quiet", "--builder", "html", "--conf-dir", str(HERE)]
    return build_main([*how, "--doctree-dir", str(output / "doctrees"), str(output / "source"), str(output / "html")])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("build/docs"))
    sys.exit(main(parser.parse_args().output))
