"""The site: guides, a page per recipe, and the project's own documents, gathered and built by `make docs`.

    python docs/site_pages.py --output build/docs

The links of the pages lead to files of the repository; this script turns them into links of the site.
"""

from __future__ import annotations

import argparse
import posixpath
import re
import shutil
import sys
from pathlib import Path

from recipe_pages import OPTIONS_PAGE, recipe_pages

HERE = Path(__file__).parent
ROOT = HERE.parent
RECIPES = ROOT / "recipes"
GUIDES = ["from_laptop_to_16_gpus", "bring_your_data", "prepare_at_scale", "labels_and_weights", "compress", "serving"]
GUIDES += [
    "keep_a_model_fresh",
    "see_runs",
    "see_embeddings",
    "how_a_batch_travels",
    "four_bottlenecks",
    "reproduce",
    "gpu",
    "glossary",
]
DEEP_DIVE = ["index", "why", "architecture", "embeddings", "matrix_factorization", "factorization_machine", "mlp"]
DEEP_DIVE += ["operators", "production", "capacity", "bandwidth", "communication", "compute", "outlook", "claims"]
SCHEDULERS = ["local", "slurm", "aws_batch", "kubernetes"]
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
    """The table of contents beside every page."""
    recipes = sorted(page for page in pages if page.startswith("recipes/") and page != f"recipes/{OPTIONS_PAGE}")
    parts = {
        "Guides": GUIDES,
        "The deep dive": [f"deep_dive/{name}" for name in DEEP_DIVE],
        "Launching": [f"schedulers/{name}.md" for name in SCHEDULERS],
        "Recipes": ["recipes/index", *recipes, f"recipes/{OPTIONS_PAGE}"],
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
