"""``dlrm-recipes delta``: make deltas between packages, apply them to a copy, and say what is in one."""

from __future__ import annotations

import argparse
from pathlib import Path

from dlrm_torchrec.terminal.shown import shown


def add_options(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    make = verbs.add_parser("make", help="write what a package has that its predecessor has not")
    make.add_argument("previous", metavar="PREVIOUS", type=Path, help="folder of the previous package")
    make.add_argument("new", metavar="NEW", type=Path, help="folder of the new package")
    make.add_argument("--output", required=True, metavar="FOLDER", type=Path, help="folder of the delta")
    make.set_defaults(work=_make)
    apply = verbs.add_parser("apply", help="write the package that deltas make of a package")
    apply.add_argument("package", metavar="PACKAGE", type=Path, help="folder of a package; load only your own")
    apply.add_argument("deltas", metavar="DELTA", type=Path, nargs="+", help="folders of deltas, in order")
    apply.add_argument("--output", required=True, metavar="FOLDER", type=Path, help="folder of the new package")
    apply.set_defaults(work=_apply)
    show = verbs.add_parser("show", help="say what is in a delta")
    show.add_argument("delta", metavar="DELTA", type=Path, help="folder of a delta")
    show.set_defaults(work=_show)


def delta(args: argparse.Namespace) -> int:
    """0 when it is done. Raises ValueError or OSError when it cannot be."""
    text: str = args.work(args)
    print(shown(text))
    return 0


def _make(args: argparse.Namespace) -> str:
    from dlrm_torchrec.inference.deltas.offline import make_delta  # this imports torch

    return _summary(make_delta(args.previous, args.new, args.output).path)


def _apply(args: argparse.Namespace) -> str:
    from dlrm_torchrec.inference.deltas.offline import apply_deltas

    apply_deltas(args.package, args.deltas, args.output)
    return f"wrote {args.output}"


def _show(args: argparse.Namespace) -> str:
    from dlrm_torchrec.inference.deltas.delta import Delta

    return _summary(Delta.read(args.delta).path)


def _summary(path: Path) -> str:
    """What a delta changes, a line each."""
    from dlrm_torchrec.inference.deltas.delta import read_facts

    facts = read_facts(path)
    window = f", window {facts['window']}" if facts["window"] else ""
    lines = [f"{facts['name']} version {facts['version']}{window}: {facts['predecessor']} becomes {facts['result']}"]
    for name, table in facts["tables"].items():
        lines.append(f"table {name}: {table['changed']:,} of {table['total']:,} rows")
    for name, vocabulary in facts["vocabularies"].items():
        lines.append(f"vocabulary {name}: {vocabulary['changed']:,} of {vocabulary['total']:,} values")
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return "\n".join([*lines, f"whole: {', '.join(facts['whole'])}", f"{size:,} bytes in all"])
