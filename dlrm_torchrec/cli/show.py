"""``dlrm-recipes show``: one or more runs as a web page, and on request as a picture."""

from __future__ import annotations

import argparse
from pathlib import Path

MARK = b'<p class="eyebrow">Training run'  # in every page that this command has written


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run, such as runs/train_dlrm/demo")
    parser.add_argument("--output", default="runs.html", metavar="FILE", help="the page to write (%(default)s)")
    parser.add_argument("--png", default="", metavar="FILE", help="also draw the charts as a picture; needs matplotlib")


def show(args: argparse.Namespace) -> int:
    """0 after the page is written. Raises ValueError or OSError when there is no such run, or no place to write."""
    from iopath.common.file_io import g_pathmgr  # only now, so that other commands are quick

    from dlrm_torchrec.cli.runs.page import page
    from dlrm_torchrec.cli.runs.picture import check_matplotlib, draw
    from dlrm_torchrec.cli.runs.read import read_runs

    path = Path(args.output)
    if path.is_file() and MARK not in path.read_bytes():
        raise ValueError(f"output must be a new file, or a page of this command: got {path}; name another")
    if args.png:
        check_matplotlib()
    runs = read_runs(args.runs)
    document = page(runs)
    with g_pathmgr.open(args.output, "w") as stream:
        stream.write(document)
    print(args.output)
    if args.png:
        draw(runs, args.png)
        print(args.png)
    return 0
