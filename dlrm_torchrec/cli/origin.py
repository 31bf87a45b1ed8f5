"""Copies of recipes, and the record of where each copy came from.

The first line of a copy names the recipe, the version of the package and the hash of the recipe's text:

    # dlrm-recipes: train_dlrm 0.1.0 sha256=<64 hexadecimal digits>

The recipe's text is kept in the folder ``.dlrm-recipes`` next to the copy, so that a later version of the recipe can be
merged with the changes of the copy. The rest of the copy is the recipe, byte by byte.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from dlrm_torchrec import __version__
from dlrm_torchrec.cli.shipped import Recipe, find, installed_recipes

_ORIGIN = re.compile(r"^# dlrm-recipes: (?P<name>\w+) (?P<version>\S+) sha256=(?P<sha256>[0-9a-f]{64})\r?\n", re.M)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Copy:
    """A copied recipe: its file, where it came from, and its text without the first line, which says so."""

    path: Path
    name: str
    version: str
    sha256: str
    text: str

    @property
    def edited(self) -> bool:
        return sha256(self.text) != self.sha256

    @property
    def behind(self) -> bool:
        """Whether the installed package has another text of this recipe."""
        return self.name in installed_recipes() and sha256(find(self.name).text) != self.sha256

    def status(self) -> str:
        changes = [word for word, holds in (("edited", self.edited), ("behind", self.behind)) if holds]
        gone = "" if self.name in installed_recipes() else ", which is no longer installed"
        installed = f"; {__version__} is installed, see `upgrade`" if self.behind else ""
        return f"{self.path}: {' and '.join(changes) or 'unchanged'} ({self.name} {self.version}{gone}{installed})"

    def original(self) -> str:
        """The recipe as it was copied. Raises ValueError when its text is lost."""
        kept = _kept(self.path, self.name, self.sha256)
        installed = [find(self.name).path] if self.name in installed_recipes() else []
        for path in filter(Path.exists, [kept, *installed]):
            text = path.read_bytes().decode()
            if sha256(text) == self.sha256:
                return text
        raise ValueError(
            f"{kept} must hold {self.name} {self.version} as it was copied: got no such text; "
            f"restore the file, or compare with the installed recipe (diff --new)"
        )


def copy_recipe(recipe: Recipe, destination: Path, *, force: bool) -> Path:
    """The file that now holds the recipe: ``destination`` itself if it ends in .py, or else a file in that folder.

    Missing folders are made. Raises ValueError when it is a link, or exists already, unless ``force`` is set.
    """
    path = destination if destination.suffix == ".py" else destination / f"{recipe.name}.py"
    _refuse_link(path)
    if path.exists() and not force:
        raise ValueError(f"destination must be a new file: {path} exists; name another, or overwrite it with --force")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_copy(path, recipe, recipe.text)
    return path


def write_copy(path: Path, recipe: Recipe, text: str) -> None:
    """Writes ``text``, made from the installed ``recipe``, with its origin; the recipe's own text is kept, too."""
    original = recipe.text
    keep(path, recipe.name, original)
    _write(path, f"# dlrm-recipes: {recipe.name} {__version__} sha256={sha256(original)}\n{text}")


def read_copy(path: Path) -> Copy:
    """The copied recipe in this file. Raises ValueError for any other file."""
    text = path.read_bytes().decode()
    origin = _ORIGIN.search(text)
    if origin is None:
        raise ValueError(
            f"{path} must be a copied recipe: got no line '# dlrm-recipes: ...'; `dlrm-recipes cp` makes one"
        )
    return Copy(path=path, text=text[: origin.start()] + text[origin.end() :], **origin.groupdict())


def copies(paths: list[Path]) -> list[Copy]:
    """The copied recipes in these files and folders. Raises ValueError for a file that is not a copied recipe."""
    files = [path for path in paths if not path.is_dir()]
    for folder in filter(Path.is_dir, paths):
        python = filter(Path.is_file, sorted(folder.glob("*.py")))  # no links that lead nowhere
        files += [file for file in python if _ORIGIN.search(file.read_text(errors="replace"))]
    return [read_copy(file) for file in files]


def keep(copy: Path, name: str, text: str) -> Path:
    """The file near ``copy`` that now keeps ``text``; its name has the text's hash, so no file replaces another."""
    path = _kept(copy, name, sha256(text))
    _refuse_link(path.parent)
    path.parent.mkdir(exist_ok=True)
    _write(path, text)
    return path


def _kept(copy: Path, name: str, digest: str) -> Path:
    return copy.parent / ".dlrm-recipes" / f"{name}.{digest[:16]}.txt"  # not .py, so that linters and tests ignore it


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise ValueError(
            f"{path} must be a file of its own: got a link to {path.readlink()}; name another, or remove it"
        )


def _write(path: Path, text: str) -> None:
    """Writes the whole file, or nothing if it is interrupted. Raises ValueError for a link."""
    _refuse_link(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    with partial.open("xb") as file:  # a link that somebody puts there is not followed
        file.write(text.encode())
    if path.exists():
        shutil.copymode(path, partial)
    partial.replace(path)
