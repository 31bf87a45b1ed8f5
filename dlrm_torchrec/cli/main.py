"""Find a recipe, run it, copy it to own it, keep the copy up to date; and see whether this machine can run it."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import argcomplete
from argcomplete.completers import FilesCompleter
from argcomplete.shell_integration import shellcode

from dlrm_torchrec.cli.compare import compare
from dlrm_torchrec.cli.doctor import CHECKS, doctor
from dlrm_torchrec.cli.launch import launch, script_of
from dlrm_torchrec.cli.merge import upgrade
from dlrm_torchrec.cli.origin import copies, copy_recipe, read_copy, sha256
from dlrm_torchrec.cli.serve import add_options, serve
from dlrm_torchrec.cli.shipped import find, shelf

DONE, FOUND, BAD_ARGUMENTS = 0, 1, 2  # FOUND: problems of this machine, or conflicts of a merge


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
    try:
        code: int = args.function(args)
    except (ValueError, OSError) as error:
        print(f"dlrm-recipes: {error}", file=sys.stderr)
        return BAD_ARGUMENTS
    return code


def list_recipes(args: argparse.Namespace) -> int:
    described = [recipe.describe() for recipe in shelf().values()]
    if args.json:
        print(json.dumps(described, indent=1, ensure_ascii=False))
        return DONE
    for recipe in described:
        print(recipe["name"])
        for line in filter(None, (recipe["teaches"], recipe["command"], recipe["expected"])):
            print(textwrap.indent(textwrap.fill(line, 112, break_on_hyphens=False), "    "))
    return DONE


def copy(args: argparse.Namespace) -> int:
    path = copy_recipe(find(args.name), args.destination, args.force)
    print(f"{path}: yours to change; keep .dlrm-recipes beside it, for `dlrm-recipes diff` and `upgrade`")
    return DONE


def run(args: argparse.Namespace) -> int:
    return launch(script_of(args.name), args.torchrun, args.own)


def status(args: argparse.Namespace) -> int:
    print("\n".join(found.status() for found in copies(args.files)) or "no copied recipe here")
    return DONE


def diff(args: argparse.Namespace) -> int:
    if args.other:
        texts = [script_of(name).read_text() for name in (str(args.file), args.other)]
        print("\n".join(compare(*texts)) or "no difference but in words")
        return DONE
    found = read_copy(args.file)
    other = find(found.name).text if args.new else found.original()
    label = f"{found.name} (installed)" if args.new else f"{found.name} {found.version}"
    lines = difflib.unified_diff(
        other.splitlines(keepends=True), found.text.splitlines(keepends=True), label, str(found.path)
    )
    sys.stdout.writelines(lines)
    return DONE


def upgrade_copy(args: argparse.Namespace) -> int:
    found = read_copy(args.file)
    if sha256(find(found.name).text) == found.sha256:
        print(f"{found.path}: up to date")
        return DONE
    conflicts, backup = upgrade(found)
    unsettled = f", with conflicts to settle between <<<<<<< and >>>>>>>: {conflicts}" if conflicts else ""
    print(f"{found.path}: upgraded{unsettled}; as it was before: {backup}")
    return FOUND if conflicts else DONE


def diagnose(args: argparse.Namespace) -> int:
    return FOUND if doctor(args.checks or list(CHECKS)) else DONE


def completion(args: argparse.Namespace) -> int:
    print(shellcode(["dlrm-recipes"], shell=args.shell))
    return DONE


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dlrm-recipes", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")

    def verb(
        name: str, function: Callable[[argparse.Namespace], int], help: str, **how: Any
    ) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=help, description=help, **how)
        added.set_defaults(function=function)
        return added

    files = FilesCompleter(["py"])
    ls = verb("ls", list_recipes, "every recipe: what it teaches, its command, what to expect of it")
    ls.add_argument("--json", action="store_true", help="as a JSON list")

    cp = verb("cp", copy, "a recipe copied, to own and to change")
    complete(cp.add_argument("name", metavar="NAME", help="of a recipe"), teachings)
    cp.add_argument("destination", metavar="DEST", type=Path, nargs="?", default=Path(), help="a new .py, or a folder")
    cp.add_argument("--force", action="store_true", help="overwrite the file")

    usage = "dlrm-recipes run NAME [torchrun options] [-- PRESET and options of the recipe]"
    launched = verb("run", run, "a recipe run; under torchrun, when options for it are given", usage=usage)
    complete(launched.add_argument("name", metavar="NAME", help="of a recipe, or the path of a file"), teachings)
    launched.add_argument("torchrun", nargs=argparse.REMAINDER, help="as in --standalone --nproc_per_node 2")

    state = verb("status", status, "what became of copied recipes: unchanged, edited by you, behind the installed one")
    paths = state.add_argument(
        "files", metavar="FILE", type=Path, nargs="*", default=[Path()], help="or folder; none: ."
    )
    complete(paths, files)

    differ = verb("diff", diff, "what you changed in a copied recipe; or, part by part, what sets two recipes apart")
    complete(differ.add_argument("file", metavar="FILE", type=Path, help="a copy; or the first of two recipes"), files)
    other = differ.add_argument("other", metavar="OTHER", nargs="?", help="the second recipe: a name, or a file")
    complete(other, teachings)
    differ.add_argument("--new", action="store_true", help="against the installed recipe, not the one copied")

    merge = verb("upgrade", upgrade_copy, "the installed recipe with your changes in it; exit code 1 for conflicts")
    complete(merge.add_argument("file", metavar="FILE", type=Path, help="a copy"), files)

    health = verb("doctor", diagnose, "whether recipes run here, and what cures what is broken; exit code 1 if it is")
    complete(
        health.add_argument("checks", metavar="CHECK", nargs="*", help=f"{', '.join(CHECKS)}; none: all"),
        lambda **_: list(CHECKS),
    )

    about = (
        "predictions over HTTP; there is no authentication: let others than this machine in through a proxy that has it"
    )
    server = verb("serve", serve, about)
    server.add_argument("package", metavar="PACKAGE", type=Path, help="the folder of a package")
    add_options(server)

    shell = verb("completion", completion, "a script that completes this command in your shell")
    shell.add_argument("shell", choices=["bash", "zsh", "fish"])
    return parser


def complete(action: argparse.Action, completer: Callable[..., Iterable[str]]) -> None:
    action.completer = completer  # type: ignore[attr-defined]  # how argcomplete is told


def teachings(**_: object) -> dict[str, str]:
    """What each recipe teaches: names to complete, and what a shell may show beside them."""
    return {name: recipe.describe()["teaches"] for name, recipe in shelf().items()}


if __name__ == "__main__":
    sys.exit(main())
