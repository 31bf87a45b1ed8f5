"""Pages of the commands and of the library, made of their parsers and docstrings: nothing here is written by hand."""

from __future__ import annotations

import argparse
import importlib
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tyro
from recipe_pages import blocks, code, prose, table

from dlrm_torchrec.cli.main import command_line
from dlrm_torchrec.recipe import load_recipe

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dlrm_torchrec"
SCRIPTS = sorted(
    str(path.relative_to(ROOT)) for path in (*ROOT.glob("data/*/prepare.py"), ROOT / "data/practice/generate.py")
)
# Modules that are commands, with the functions behind them; several functions are sub-commands.
PROGRAMS = {
    "preparation.propose": ["main"],
    "datasets.profile": ["main"],
    "datasets.multi_hot": ["main"],
    "datasets.windows.chain": ["main"],
    "traces.trace": ["fit", "histogram", "generate"],
    "sharding.measured": ["main"],
    "embeddings.dimension_rule": ["main"],
}


def command_page() -> str:
    """Every command beside the recipes, with its options."""
    recipes = "Recipes have [pages of their own](recipes/index.md)."
    parts = ["# Commands", f"{recipes} Each command prints its options with `--help`."]
    parts += ["## dlrm-recipes", *_verbs(command_line())]
    parts += ["## Prepare data"]
    for script in SCRIPTS:
        module = load_recipe(str(ROOT / script))
        parts += [*_command(f"python {script}", module.__doc__ or "", module.Config)]
    parts += ["## Programs of the library"]
    for name, functions in PROGRAMS.items():
        module = importlib.import_module(f"dlrm_torchrec.{name}")
        for function in functions:
            typed = f"python -m dlrm_torchrec.{name}" + f" {function}" * (len(functions) > 1)
            parts += [*_command(typed, module.__doc__ or "", getattr(module, function))]
    return "\n\n".join(parts) + "\n"


def _verbs(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The sub-commands of a command, each with its arguments, and theirs in turn."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield f"### {verb.prog}"
                told = verb.description or verb.format_usage().strip()
                yield prose(f"{told[:1].upper()}{told[1:]}.", set())
                yield from _arguments(verb)
                yield from _verbs(verb)


def _command(typed: str, told: str, config: Callable[..., Any]) -> Iterator[str]:
    first, _, rest = told.partition("\n")
    yield f"### {typed}"
    yield prose(first, set())
    yield from blocks(rest, set())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # tyro has no other way to its parser
        yield from _arguments(tyro.extras.get_parser(config))


def _arguments(parser: Any) -> Iterator[str]:
    """A table of the arguments of a parser, tyro's or Python's, unless it has none."""
    rows = [["argument", "meaning"]]
    for action in parser._actions:
        if action.help and action.dest != "help" and not isinstance(action, argparse._SubParsersAction):
            names = action.option_strings or [action.dest.upper()]
            meaning = " ".join((action.help.replace("%(default)s", f"default: {action.default}")).split())
            rows.append([", ".join(code(name.replace("_", "-")) for name in names), prose(meaning, set())])
    if len(rows) > 1:
        yield table(rows)


def library_pages() -> dict[str, str]:
    """A page for each part of the library, from which Sphinx reads the docstrings, and ``index.md``."""
    modules: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] not in ("recipes", "data") and path.name != "__init__.py":
            modules.setdefault(parts[0] if len(parts) > 1 else "", []).append(".".join(parts))
    named = {name: modules[name] for name in sorted(modules) if name}
    told = (
        "What each part of `dlrm_torchrec` offers, from its docstrings. The import law says which part may use which."
    )
    rows = [["part", "modules"], *([f"[{name}]({name}.md)", str(len(listed))] for name, listed in named.items())]
    index = f"# Library\n\n{told}\n\n{table(rows)}\n" + "".join(map(_module, modules[""]))
    return {f"{name}.md": f"# {name}\n" + "".join(map(_module, listed)) for name, listed in named.items()} | {
        "index.md": index
    }


def _module(name: str) -> str:
    """The public names of a module; Sphinx leaves out what has no docstring."""
    heading = re.sub(r"^\w+\.", "", name)
    return f"\n## {heading}\n\n```{{eval-rst}}\n.. automodule:: dlrm_torchrec.{name}\n   :members:\n```\n"
