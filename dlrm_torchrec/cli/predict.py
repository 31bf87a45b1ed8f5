"""``dlrm-recipes predict``: the predictions of a package for all rows of a file."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlrm_torchrec.inference.batch.rows import Rows

SPLIT = "val"  # of a prepared folder, if none is named
INTERRUPTED = 130  # exit code after Ctrl-C, as of shells
SHOW_EVERY_S = {True: 0.5, False: 30.0}  # on a terminal, and elsewhere


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("package", metavar="PACKAGE", type=Path, help="folder of a package; load only your own")
    parser.add_argument(
        "input",
        metavar="ROWS",
        type=Path,
        help="Parquet file, CSV file with a header, or JSON lines (.jsonl) of raw values; or a prepared folder of "
        "histories, whose candidates are scored, or whose next items are told",
    )
    parser.add_argument("--top", type=int, metavar="X", help="items of each user, of a package that ranks items (10)")
    parser.add_argument("--split", metavar="X", help=f"of a prepared folder ({SPLIT})")
    parser.add_argument("--output", required=True, metavar="FILE", type=Path, help="new file, .parquet or .csv")
    parser.add_argument("--separator", default=",", metavar="X", help="between the columns of CSV (%(default)s)")
    parser.add_argument("--list-separator", default="|", metavar="X", help="between values of a list (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, metavar="X", help="threads of the model (%(default)s)")
    parser.add_argument("--force", action="store_true", help="overwrite an existing output, also an unfinished one")


def predict(args: argparse.Namespace) -> int:
    """0 after all rows are scored, 130 after Ctrl-C. Raises ValueError or OSError when they cannot be."""
    if args.output.suffix not in (".parquet", ".csv"):
        raise ValueError(f"output must end in .parquet or .csv: got {args.output}; rename it")
    if args.output.exists() and not args.force:
        raise ValueError(f"output must be a new file: {args.output} exists; name another, or overwrite it with --force")
    if args.output.is_dir():
        raise ValueError(f"output must be a file: got the folder {args.output}; name a file in it")
    if args.output.exists() and args.input.exists() and args.output.samefile(args.input):
        raise ValueError(f"output must be another file than the input: got {args.output} for both; name another")
    if args.top is not None and args.top < 1:
        raise ValueError(f"top must be at least 1: got {args.top}; 10 is usual")
    if args.threads < 1 or len(args.separator.encode()) != 1 or not args.list_separator:
        raise ValueError(
            f"threads must be at least 1, separator one byte, and list-separator not empty: got {args.threads}, "
            f"{args.separator!r} and {args.list_separator!r}; correct them"
        )
    if args.split and args.input.is_file():
        raise ValueError(f"--split must be that of a prepared folder: got the file {args.input}; leave it out")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else torch tells that a type in int8 packages is old
    import pyarrow as pa  # only now, so that other commands are quick
    import torch

    from dlrm_torchrec.inference.batch.rows import CsvForm, one_line, open_rows
    from dlrm_torchrec.inference.batch.score import Parts, job, score
    from dlrm_torchrec.inference.loading import load_package
    from dlrm_torchrec.inference.predictor import TOP

    torch.set_num_threads(args.threads)
    start = time.monotonic()
    predictor = load_package(args.package, top=args.top or TOP)
    if args.top and not predictor.ranked:
        raise ValueError(f"--top must be for a package that ranks items: got {args.package}; leave it out")
    has_lists = predictor.ranked or (predictor.spec.get("history") and not args.input.is_dir())
    if has_lists and args.output.suffix == ".csv":
        raise ValueError(f"output must be Parquet for a list of predictions per user: got {args.output}; rename it")
    if args.input.is_dir():
        from dlrm_torchrec.inference.batch.histories import score_histories

        shown = Progress(None)
        count = score_histories(predictor, str(args.input), args.output, split=args.split or SPLIT, scored=shown)
        shown.end()
        print(json.dumps({"output": str(args.output), "rows": count, "seconds": round(time.monotonic() - start, 1)}))
        return 0
    missing = tuple(predictor.spec["missing"])
    form = CsvForm(separator=args.separator, list_separator=args.list_separator, missing=missing)
    lists = [name for name, is_list in predictor.encode.keys if is_list]
    try:
        rows = open_rows(args.input, predictor.columns, lists, form)
        options = vars(form) | ({"top": predictor.top} if predictor.ranked else {})
        with closing(Parts(args.output, job(args.package, args.input, options), replace=args.force)) as parts:
            if parts.count:
                print(f"resumed at row {parts.num_rows():,} from {parts.folder}", file=sys.stderr)
            progress = Progress(rows)
            unseen = score(predictor, rows, parts, progress)
    except pa.ArrowException as error:
        raise ValueError(f"{args.input} must be a whole file of rows: got {one_line(error)}; correct it") from error
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on after the last finished part", file=sys.stderr)
        return INTERRUPTED
    progress.end()
    found = {"output": str(args.output), "rows": progress.done, "unseen": unseen}
    print(json.dumps(found | {"seconds": round(time.monotonic() - start, 1)}, ensure_ascii=False))
    return 0


class Progress:
    """Prints how many rows are scored, how many there are, about if need be, and how long the others will take."""

    def __init__(self, rows: Rows | None) -> None:
        self.rows = rows
        self.done = 0
        self._first: int | None = None  # row of this start
        self._start = self._shown = time.monotonic()
        self._is_terminal = sys.stderr.isatty()

    def __call__(self, done: int) -> None:
        self.done = done
        if self._first is None:
            self._first = done
        now = time.monotonic()
        if now - self._shown >= SHOW_EVERY_S[self._is_terminal]:
            self._shown = now
            self._show(now)

    def end(self) -> None:
        self._show(time.monotonic())
        if self._is_terminal:
            print(file=sys.stderr)

    def _show(self, now: float) -> None:
        rate = (self.done - (self._first or 0)) / max(now - self._start, 1e-9)
        text = f"{self.done:,} rows scored, {rate:,.0f} per second"
        if self.rows is not None and self.rows.num_rows is not None:
            of = f"about {self.rows.num_rows:,}" if self.rows.is_estimated else f"{self.rows.num_rows:,}"
            text = f"{self.done:,} of {of} rows scored, {rate:,.0f} per second"
            text += f", {max(0, self.rows.num_rows - self.done) / rate:,.0f} s left" if rate else ""
        print(f"\r{text}\033[K" if self._is_terminal else text, end="" if self._is_terminal else "\n", file=sys.stderr)
        sys.stderr.flush()
