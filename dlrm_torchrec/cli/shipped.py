"""The recipes and preparation scripts of this installation, read without importing them."""

from __future__ import annotations

import ast
import difflib
import importlib.resources
import re
from dataclasses import dataclass
from pathlib import Path

# The command that a docstring tells the reader of a clone to type, and the sentence that says what to expect.
_COMMAND = re.compile(
    r"^ {4}(?:python|torchrun (?P<torchrun>.*?)) (?:recipes|data)/\S+\.py(?P<own>.*?)(?: +#.*)?$", re.M
)
_EXPECTED = re.compile(r"\bExpected\b.*?\.(?=\s|$)", re.S)
# The order in which to read them; each is a small step from one before it.
_READING_ORDER = (
    *(
        "train_dlrm",
        "train_dcnv2",
        "train_logistic",
        "train_fm",
        "train_deepfm",
        "train_mf",
        "train_neumf",
        "train_rmc",
        "train_hstu",
        "train_hstu_next_item",
    ),
    *(
        "train_dlrm_compositional",
        "train_dlrm_local_embeddings",
        "train_dlrm_daily",
        "train_hstu_daily",
        "compare_embeddings",
        "plan_sharding",
        "evaluate",
    ),
    *("export_tables", "cluster_tables", "quantize_dlrm", "secret_shared_layer"),
)


@dataclass(frozen=True)
class Recipe:
    """An installed recipe or preparation script; ``path`` is its file in this installation."""

    name: str
    path: Path

    @property
    def text(self) -> str:
        return self.path.read_bytes().decode()

    def describe(self) -> dict[str, str]:
        """``name``, ``teaches``, ``command`` and ``expected``; a part is empty if the docstring does not have it."""
        docstring = ast.get_docstring(ast.parse(self.text), clean=False) or ""
        command, expected = _COMMAND.search(docstring), _EXPECTED.search(docstring)
        return {
            "name": self.name,
            "teaches": docstring.partition("\n")[0],
            "command": self._command(**command.groupdict(default="")) if command else "",
            "expected": " ".join(expected[0].split()) if expected else "",
        }

    def _command(self, torchrun: str, own: str) -> str:
        """The docstring's command as you type it in any folder."""
        words = f"dlrm-recipes run {self.name} {torchrun} {'-- ' + own if own else ''}"
        return " ".join(words.split())


def installed_recipes() -> dict[str, Recipe]:
    """All recipes by name, in reading order, then all preparation scripts as ``prepare_<data set>``."""
    package = Path(str(importlib.resources.files("dlrm_torchrec")))
    found = {path.stem: path for path in sorted((package / "recipes").glob("*.py"))}
    recipes = {name: found[name] for name in (*_READING_ORDER, *found) if name in found}
    prepare = {f"prepare_{path.parent.name}": path for path in sorted((package / "data").glob("*/prepare.py"))}
    return {name: Recipe(name, path) for name, path in {**recipes, **prepare}.items()}


def find(name: str) -> Recipe:
    """The recipe of that name. Raises ValueError when there is none."""
    recipes = installed_recipes()
    if name not in recipes:
        near = difflib.get_close_matches(name, recipes, n=1)
        advice = f"did you mean {near[0]}?" if near else "`dlrm-recipes ls` lists them"
        raise ValueError(f"recipe must be one of the {len(recipes)} installed ones: got {name!r}; {advice}")
    return recipes[name]
