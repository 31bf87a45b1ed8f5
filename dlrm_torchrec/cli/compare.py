"""The difference of two recipes, part by part: options, presets, imports, the model, the loop."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Sequence

IMPORTS, PRESETS = "imports", "presets"


def compare(one: str, other: str) -> Iterator[str]:
    """Lines that show how the texts of two recipes differ, with a heading for each part that differs.

    Above changed lines stands the last comment before them, which tells their place in a loop. Presets are compared by
    name only.
    """
    before, after = parts(one), parts(other)
    for part in {**before, **after}:
        changes = list(_changes(before.get(part, []), after.get(part, [])))
        if changes:
            yield f"== {part}"
            yield from changes


def parts(text: str) -> dict[str, list[str]]:
    """The lines of a recipe by part: ``imports``, ``presets``, then each class and function by its name."""
    tree, lines = ast.parse(text), text.splitlines()
    by_part: dict[str, list[str]] = {IMPORTS: sorted(_imported(tree)), PRESETS: []}
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            by_part[node.name] = lines[node.lineno - 1 : node.end_lineno]
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PRESETS":
            assert isinstance(node.value, ast.Dict)
            by_part[PRESETS] = [ast.literal_eval(key) for key in node.value.keys if key is not None]
    return by_part


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{each.name}" for each in node.names)
        elif isinstance(node, ast.Import):
            yield from (each.name for each in node.names)


def _changes(one: Sequence[str], other: Sequence[str]) -> Iterator[str]:
    landmark = None
    for kind, first, last, other_first, other_last in difflib.SequenceMatcher(
        None, one, other, autojunk=False
    ).get_opcodes():
        if kind == "equal":
            continue
        above = next((line.strip() for line in reversed(other[:other_first]) if line.strip().startswith("#")), None)
        if above != landmark and above is not None:
            yield f"  {above}"
        landmark = above
        yield from (f"- {line}" for line in one[first:last])
        yield from (f"+ {line}" for line in other[other_first:other_last])
