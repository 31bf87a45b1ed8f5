"""``dlrm-recipes neighbours`` and ``dlrm-recipes map``: what the vectors of a trained feature say of its values."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from dlrm_torchrec.terminal.quiet import quiet_libraries

if TYPE_CHECKING:
    from dlrm_torchrec.cli.vectors.source import Source

MARK = b'<p class="eyebrow">Map of vectors'  # in every page that ``map`` has written


def add_neighbours(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument("value", metavar="VALUE", help="a value of the feature, as the raw data has it")
    parser.add_argument("--id", action="store_true", help="VALUE is an id: a bucket of hashed values, 0 for missing")
    parser.add_argument("--by", choices=["cosine", "dot"], default="cosine", help="what is near (%(default)s)")
    parser.add_argument("--top", type=_count, default=10, metavar="X", help="number of values to print (%(default)s)")


def add_map(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument("--by", choices=["pca", "umap"], default="pca", help="umap needs umap-learn (%(default)s)")
    about = "CSV or Parquet file, whose first column has values and whose second one what to colour them by"
    parser.add_argument("--colour", default="", metavar="FILE", help=f"{about}; by default how often they were seen")
    parser.add_argument("--output", default="map.html", metavar="FILE", help="the page to write (%(default)s)")


def neighbours(args: argparse.Namespace) -> int:
    """0 after the nearest values are printed. Raises ValueError when the run, the feature or the value is unknown."""
    source = open_vectors(args)  # this imports torch, so that other commands are quick
    from dlrm_torchrec.cli.vectors.search import nearest, search_text

    query = source.values.given_id(args.value) if args.id else source.values.id_of(args.value)
    found = nearest(source.read, source.candidates(), query, by=args.by, top=args.top)
    print(search_text(source, query, found, by=args.by))
    return 0


def draw_map(args: argparse.Namespace) -> int:
    """0 after the page is written. Raises ValueError or OSError when there is no such run, or no place to write."""
    path = Path(args.output)
    if path.is_file() and MARK not in path.read_bytes():
        raise ValueError(f"output must be a new file, or a page of this command: got {path}; name another")
    from dlrm_torchrec.cli.vectors.plane import check_umap

    if args.by == "umap":
        check_umap()
    source = open_vectors(args)
    from iopath.common.file_io import g_pathmgr

    from dlrm_torchrec.cli.vectors.page import page

    document = page(source, by=args.by, colour=args.colour)
    with g_pathmgr.open(args.output, "w") as stream:
        stream.write(document)
    print(args.output)
    return 0


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of a run, such as runs/train_dlrm/demo, or of a package")
    parser.add_argument("feature", metavar="FEATURE", help="a categorical feature")
    which = "step of the checkpoint, or best; by default the newest one"
    parser.add_argument("--step", type=_step, metavar="X", help=which)
    data = "the prepared folder, if it is no longer where the run read it; tells how often a package's values were seen"
    parser.add_argument("--data", default="", metavar="FOLDER", help=data)
    seen = "leave out values that the training rows have less often, whose vectors are near to random (%(default)s)"
    parser.add_argument("--seen", type=_count, default=1, metavar="X", help=seen)


def open_vectors(args: argparse.Namespace) -> Source:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else torch tells that a type in int8 packages is old
    quiet_libraries()
    from dlrm_torchrec.cli.vectors.source import open_source

    return open_source(args.run, args.feature, step=args.step, data=args.data, least_seen=args.seen)


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1: got {count}")
    return count


def _step(text: str) -> int | str:
    return text if text == "best" else int(text)
