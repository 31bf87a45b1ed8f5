"""Find, run and copy recipes, keep copies up to date, check whether this machine can run them, and use a model."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import argcomplete
from argcomplete.completers import FilesCompleter
from argcomplete.shell_integration import shellcode

from dlrm_torchrec.cli import delta, predict, serve, show
from dlrm_torchrec.cli.compare import compare
from dlrm_torchrec.cli.doctor import CHECKS, doctor
from dlrm_torchrec.cli.launch import launch, script_of
from dlrm_torchrec.cli.merge import upgrade
from dlrm_torchrec.cli.origin import copies, copy_recipe, read_copy, sha256
from dlrm_torchrec.cli.shipped import find, installed_recipes
from dlrm_torchrec.cli.vectors import commands as vectors
from dlrm_torchrec.terminal.quiet import quiet_libraries
from dlrm_torchrec.terminal.shown import shown

DONE, FOUND, BAD_ARGUMENTS = 0, 1, 2  # FOUND: this machine has problems, or a merge has conflicts


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of a command line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    own: list[str] = []
    if arguments[:1] == ["run"] and "--" in arguments:
        split = arguments.index("--")
        arguments, own = arguments[:split], arguments[split + 1 :]
    parser = command_line()
    argcomplete.autocomplete(parser)
    args = parser.parse_args(arguments, argparse.Namespace(own=own))
    quiet_libraries()
    try:
        code: int = args.function(args)
        sys.stdout.flush()
    except BrokenPipeError:  # of `dlrm-recipes ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes what is left when it ends
        return DONE
    except (ValueError, OSError) as error:
        print(shown(f"dlrm-recipes: {error}"), file=sys.stderr)
        return BAD_ARGUMENTS
    return code


def overview(_: argparse.Namespace) -> int:
    """Prints a line for each recipe, in the order in which to read them."""
    recipes = installed_recipes()
    width, columns = max(map(len, recipes)), shutil.get_terminal_size().columns
    for name, teaches in teachings().items():
        teaches = re.sub(r" \(arXiv [0-9.]+\)", "", teaches)
        print(f"{name:{width}}  {textwrap.shorten(teaches, max(20, columns - width - 2), placeholder=' ...')}")
    print("\n`dlrm-recipes ls` says more of each, `run NAME` runs one, `cp NAME` copies it; --help lists all commands.")
    return DONE


def list_recipes(args: argparse.Namespace) -> int:
    described = [recipe.describe() for recipe in installed_recipes().values()]
    if args.json:
        print(json.dumps(described, indent=1, ensure_ascii=False))
        return DONE
    for recipe in described:
        print(recipe["name"])
        for line in filter(None, (recipe["teaches"], recipe["command"], recipe["expected"])):
            print(textwrap.indent(textwrap.fill(line, 112, break_on_hyphens=False), "    "))
    return DONE


def copy(args: argparse.Namespace) -> int:
    path = copy_recipe(find(args.name), args.destination, force=args.force)
    print(shown(f"{path}: this copy is yours; `dlrm-recipes diff` and `upgrade` need .dlrm-recipes next to it"))
    print(shown(f"`dlrm-recipes run {path}` runs it, and `torchx run -s local_cwd dlrm.train -j 1x2 {path}` as a job"))
    return DONE


def run(args: argparse.Namespace) -> int:
    return launch(script_of(args.name), args.torchrun, args.own)


def status(args: argparse.Namespace) -> int:
    print(shown("\n".join(copied.status() for copied in copies(args.files))) or "there is no copied recipe here")
    return DONE


def diff(args: argparse.Namespace) -> int:
    if args.other:
        texts = [script_of(name).read_text() for name in (str(args.file), args.other)]
        print(shown("\n".join(compare(*texts))) or "no difference in options, presets, imports, model and loop")
        return DONE
    copied = read_copy(args.file)
    other = find(copied.name).text if args.new else copied.original()
    label = f"{copied.name} (installed)" if args.new else f"{copied.name} {copied.version}"
    lines = difflib.unified_diff(
        other.splitlines(keepends=True), copied.text.splitlines(keepends=True), label, str(copied.path)
    )
    sys.stdout.writelines(map(shown, lines))
    return DONE


def upgrade_copy(args: argparse.Namespace) -> int:
    copied = read_copy(args.file)
    if sha256(find(copied.name).text) == copied.sha256:
        print(shown(f"{copied.path}: up to date"))
        return DONE
    conflicts, backup = upgrade(copied)
    unsettled = f", with conflicts to resolve between <<<<<<< and >>>>>>>: {conflicts}" if conflicts else ""
    print(shown(f"{copied.path}: upgraded{unsettled}; the copy before the upgrade: {backup}"))
    return FOUND if conflicts else DONE


def diagnose(args: argparse.Namespace) -> int:
    return FOUND if doctor(args.checks or list(CHECKS)) else DONE


def completion(args: argparse.Namespace) -> int:
    print(shellcode(["dlrm-recipes"], shell=args.shell))
    return DONE


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dlrm-recipes", description=__doc__)
    parser.set_defaults(function=overview)
    verbs = parser.add_subparsers(metavar="COMMAND")

    def verb(
        name: str, function: Callable[[argparse.Namespace], int], help: str, **how: Any
    ) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=help, description=help, **how)
        added.set_defaults(function=function)
        return added

    files = FilesCompleter(["py"])
    ls = verb("ls", list_recipes, "list the recipes: what each one does, its command, and what to expect")
    ls.add_argument("--json", action="store_true", help="print a JSON list")

    cp = verb("cp", copy, "copy a recipe, so that you can change it")
    complete(cp.add_argument("name", metavar="NAME", help="name of a recipe"), teachings)
    cp.add_argument("destination", metavar="DEST", type=Path, nargs="?", default=Path(), help="a new file or a folder")
    cp.add_argument("--force", action="store_true", help="overwrite an existing file")

    usage = "dlrm-recipes run NAME [torchrun options] [-- PRESET and options of the recipe]"
    launched = verb("run", run, "run a recipe, under torchrun if you give options for it", usage=usage)
    complete(launched.add_argument("name", metavar="NAME", help="name of a recipe, or path of a file"), teachings)
    launched.add_argument("torchrun", nargs=argparse.REMAINDER, help="such as --standalone --nproc_per_node 2")

    state = verb("status", status, "show the state of copied recipes: unchanged, edited, or behind the installed one")
    paths = state.add_argument(
        "files", metavar="FILE", type=Path, nargs="*", default=[Path()], help="files or folders; by default ."
    )
    complete(paths, files)

    differ = verb("diff", diff, "show what you changed in a copied recipe, or how two recipes differ, part by part")
    complete(differ.add_argument("file", metavar="FILE", type=Path, help="a copy, or the first of two recipes"), files)
    other = differ.add_argument("other", metavar="OTHER", nargs="?", help="the second recipe: a name or a file")
    complete(other, teachings)
    differ.add_argument("--new", action="store_true", help="compare with the installed recipe, not the one copied")

    merge = verb("upgrade", upgrade_copy, "merge your changes with the installed recipe; exit code 1 for conflicts")
    complete(merge.add_argument("file", metavar="FILE", type=Path, help="a copy"), files)

    health = verb(
        "doctor", diagnose, "check whether recipes run here, and print how to fix them; exit code 1 if they do not"
    )
    complete(
        health.add_argument("checks", metavar="CHECK", nargs="*", help=f"{', '.join(CHECKS)}; by default all"),
        lambda **_: list(CHECKS),
    )

    about = "answer requests for predictions over HTTP; before exposing it, add a proxy with authentication and TLS"
    serve.add_options(verb("serve", serve.serve, about))
    about = "score all rows of a Parquet or CSV file; after an interruption, the same command goes on"
    predict.add_options(verb("predict", predict.predict, about))

    about = "make, apply or show a delta, which turns one package into the next"
    delta.add_options(verb("delta", delta.delta, about))

    show.add_options(verb("show", show.show, "draw the metrics of runs against steps, as a web page"))
    about = "print the values of a feature whose vectors are nearest to that of a value"
    vectors.add_neighbours(verb("neighbours", vectors.neighbours, about))
    vectors.add_map(verb("map", vectors.draw_map, "draw the values of a feature by their vectors, as a web page"))

    shell = verb("completion", completion, "print a script that completes this command in your shell")
    shell.add_argument("shell", choices=["bash", "zsh", "fish"])
    return parser


def complete(action: argparse.Action, completer: Callable[..., Iterable[str]]) -> None:
    action.completer = completer  # type: ignore[attr-defined]  # how argcomplete is told


def teachings(**_: object) -> dict[str, str]:
    """Names of recipes to complete, each with the text that a shell may show next to it."""
    return {name: recipe.describe()["teaches"] for name, recipe in installed_recipes().items()}


if __name__ == "__main__":
    sys.exit(main())
