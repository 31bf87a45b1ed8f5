"""A page per recipe, made of its docstring, presets and config: nothing here is written by hand."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeGuard, get_args, get_origin, get_type_hints

from tyro.conf import Positional, Suppress

from dlrm_torchrec.cli.shipped import Recipe
from dlrm_torchrec.recipe import load_recipe
from dlrm_torchrec.schema import DatasetSpec

OPTIONS_PAGE = "options.md"
COMMAND = re.compile(r"^ *(python|torchrun|torchx) ", re.M)
SUPPRESSED, POSITIONAL = get_args(Suppress[int])[1:], get_args(Positional[int])[1:]  # what is annotated


def recipe_pages(folder: Path) -> dict[str, str]:
    """Markdown by file name: a page per recipe in the folder, ``index.md``, and ``options.md`` for all."""
    recipes = [Recipe(path.stem, path) for path in sorted(folder.glob("*.py"))]
    modules = {recipe.name: load_recipe(str(recipe.path)) for recipe in recipes}
    pages = {f"{recipe.name}.md": recipe_page(recipe, modules[recipe.name], set(modules)) for recipe in recipes}
    return {**pages, "index.md": index_page(recipes), OPTIONS_PAGE: options_page(modules)}


def recipe_page(recipe: Recipe, module: ModuleType, names: set[str]) -> str:
    first, _, rest = (module.__doc__ or "").partition("\n")
    parts = [f"# {recipe.name}", prose(first, names), *blocks(rest, names)]
    if hasattr(module, "PRESETS"):
        parts += ["## Presets", *presets(recipe, module.PRESETS)]
    parts += ["## Options", options(module.Config)]
    copied = f"`dlrm-recipes cp {recipe.name}` copies [this file](source/{recipe.name}.py) into your folder."
    parts += ["## Source", copied]
    parts += [f"```{{literalinclude}} source/{recipe.name}.py\n:language: python\n:linenos:\n```"]
    return "\n\n".join(parts) + "\n"


def index_page(recipes: list[Recipe]) -> str:
    rows = [["recipe", "what it does", "what to expect"]]
    for recipe in recipes:
        told = recipe.describe()
        expected = told["expected"].removeprefix("Expected: ")
        rows.append([f"[{recipe.name}]({recipe.name}.md)", prose(told["teaches"], set()), prose(expected, set())])
    text = "A recipe is one file. Copy it, change it, own it; the pages below are made from the files themselves."
    return f"# Recipes\n\n{text}\n\n{table(rows)}"


def blocks(docstring: str, names: set[str]) -> Iterator[str]:
    """The docstring's paragraphs as Markdown, its indented lines as commands."""
    for indented, lines in groupby(docstring.splitlines(), key=lambda line: line.startswith("    ")):
        text = "\n".join(lines).strip("\n")
        if indented:
            language = "sh" if COMMAND.search(text) else "text"
            yield f"```{language}\n{textwrap.dedent(text)}\n```"
        elif text:
            yield prose(text, names)


def prose(text: str, names: set[str]) -> str:
    """Text that Markdown shows as it stands, with links to papers and to the pages of ``names``."""
    pieces = re.split(r"(``.*?``)", text, flags=re.DOTALL)
    pieces[::2] = [re.sub(r"([\\*<\[\]|_])", r"\\\1", piece) for piece in pieces[::2]]
    text = re.sub(r"\b(\d{4}\.\d{5})\b", r"[\1](https://arxiv.org/abs/\1)", "".join(pieces))
    for name in names:
        escaped = name.replace("_", r"\\_")
        text = re.sub(rf"(?<![\w/])(recipes/)?{escaped}\.py", rf"[{escaped}.py]({name}.md)", text)
    return text


def presets(recipe: Recipe, configs: Mapping[str, Any]) -> Iterator[str]:
    """What each preset is for, and the options in which they differ."""
    notes = preset_notes(recipe.text)
    told = {name: f": {prose(notes[name], set())}" if name in notes else "" for name in configs}
    yield "\n".join(f"- `python recipes/{recipe.name}.py {name}`{note}" for name, note in told.items())
    values = {name: dict(flat(vars(config))) for name, config in configs.items()}
    first = next(iter(values))
    names = dict.fromkeys(option for each in values.values() for option in each)
    rows = [
        [code(option), *(code(each.get(option, "")) for each in values.values())]
        for option in names
        if any(each.get(option) != values[first].get(option) for each in values.values())
    ]
    if rows:
        yield f"The options in which they differ from `{first}`:"
        yield table([["option", *configs], *rows])


def preset_notes(source: str) -> dict[str, str]:
    """The comment behind the opening line of each preset, where it has one."""
    comments = _comments(source)
    for node in ast.parse(source).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="PRESETS")], value=ast.Dict(keys=keys)):
                lines = {str(key.value): key.lineno for key in keys if isinstance(key, ast.Constant)}
                return {name: comments[line] for name, line in lines.items() if line in comments}
    return {}


def flat(values: Mapping[str, Any], prefix: str = "--") -> Iterator[tuple[str, str]]:
    """Each option of a config and its value, as one types them."""
    for name, value in values.items():
        if isinstance(value, DatasetSpec):
            tables, rows = len(value.sparse), sum(feature.rows for feature in value.sparse)
            yield "synthetic rows", f"{value.name}: {len(value.dense)} dense, {tables} tables of {rows:,} rows"
        elif dataclasses.is_dataclass(value):
            yield from flat(vars(value), f"{prefix}{name}.")
        else:
            yield prefix + name.replace("_", "-"), typed(value)


def typed(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def options(config: type, prefix: str = "--") -> str:
    """A table of the fields of a config; those that are configs themselves are explained on a page for all recipes."""
    hints, notes = get_type_hints(config, include_extras=True), field_notes(config)
    rows = [["option", "default", "meaning"]]
    for field in dataclasses.fields(config):
        kind = hints[field.name]
        marks = getattr(kind, "__metadata__", ())
        kind = get_args(kind)[0] if marks else kind
        if marks == SUPPRESSED:
            continue
        name, note = prefix + field.name.replace("_", "-"), prose(notes[field.name], set())
        if is_config(kind):
            told, note = ", ".join(changed(default(field))), note or prose(first_line(kind), set())
            rows.append([f"[`{name}.*`]({OPTIONS_PAGE}#{kind.__name__.lower()})", code(told), note])
            continue
        if get_origin(kind) is Literal:
            note = "; ".join(filter(None, [note, "one of " + ", ".join(f"`{each}`" for each in get_args(kind))]))
        names = [field.name] if marks == POSITIONAL else [name, *(each for mark in marks for each in aliases(mark))]
        value = default(field)
        shown = "" if value is dataclasses.MISSING else code(typed(value))
        rows.append([", ".join(map(code, names)), shown, note])
    return table(rows)


def aliases(mark: Any) -> tuple[str, ...]:
    return tuple(getattr(mark, "aliases", None) or ())


def default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def changed(config: Any) -> list[str]:
    """The options of a nested config that differ from the defaults of its class, or have none there."""
    usual = dict(flat({field.name: default(field) for field in dataclasses.fields(config)}, ""))
    return [f"{name} {value}" for name, value in flat(vars(config), "") if usual[name] != value]


def options_page(modules: Mapping[str, ModuleType]) -> str:
    """The configs that recipes share, each with its fields."""
    shared: dict[type, set[str]] = {}
    for module in modules.values():
        for prefix, kind in nested(module.Config, "--"):
            shared.setdefault(kind, set()).add(prefix)
    command = "`python recipes/train_dlrm.py demo --tables.kind hash`"
    parts = ["# Options that recipes share", f"They come after the preset, as in {command}."]
    for kind, prefixes in sorted(shared.items(), key=lambda item: item[0].__name__):
        text = f"{', '.join(f'`{each}*`' for each in sorted(prefixes))}: {prose(first_line(kind), set())}"
        parts += [f"## {kind.__name__}", text, options(kind, "--*." if len(prefixes) > 1 else min(prefixes))]
    return "\n\n".join(parts) + "\n"


def nested(config: type, prefix: str) -> Iterator[tuple[str, type]]:
    """The configs inside a config, with what their options begin with."""
    for name, kind in get_type_hints(config).items():
        if is_config(kind) and kind is not DatasetSpec:
            yield f"{prefix}{name}.", kind
            yield from nested(kind, f"{prefix}{name}.")


def is_config(kind: Any) -> TypeGuard[type]:
    return dataclasses.is_dataclass(kind)


def first_line(config: type) -> str:
    return (inspect.getdoc(config) or "").partition("\n")[0]


def field_notes(config: type) -> dict[str, str]:
    """What the comment behind each field of a dataclass says, or the text below the field; empty for neither."""
    kinds = [kind for kind in reversed(config.__mro__) if is_config(kind)]  # it may inherit some of its fields
    return {name: note for kind in kinds for name, note in _own_notes(kind).items()}


def _own_notes(config: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(config))
    comments, notes = _comments(source), dict[str, str]()
    (definition,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    for node, below in zip(definition.body, [*definition.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            notes[ast.unparse(node.target)] = _text(below) or comments.get(node.end_lineno or 0, "")
    return notes


def _text(node: ast.stmt | None) -> str:
    """The text of a statement that is nothing but a string."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return node.value.value
    return ""


def _comments(source: str) -> dict[int, str]:
    """Comments by the number of their line."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def table(rows: list[list[str]]) -> str:
    head, *body = rows
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, ["---"] * len(head), *body])
