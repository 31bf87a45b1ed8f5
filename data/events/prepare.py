"""Prepare a log of events, or MovieLens, as users' histories: what did a user do, with what, and when?

    python data/events/prepare.py --input log.csv --positive like --output prepared/log
    python data/events/prepare.py --input ml-1m --positive 4 5 --output prepared/ml-1m-histories
    python data/events/prepare.py --input listens.parquet --user uid --item track --events artist album \\
        --positive listen_plus --gap_s 1800 --output prepared/listens

A log is text with any separator or Parquet, with a row for each event: ``user,item,action,time``. Files may be
compressed. Malformed rows go to quarantine.tsv in the output folder, and report.json counts them. The folder gets one
row per user with lists of events by time; candidates are cut out of them when a model is trained.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import tyro

from dlrm_torchrec.datasets.prepared.manifest import Manifest, join
from dlrm_torchrec.preparation.crosses import SizedCross
from dlrm_torchrec.preparation.histories import LogColumns, prepare_histories
from dlrm_torchrec.preparation.interactions import NAMES
from dlrm_torchrec.preparation.movielens import FORMATS, find_format
from dlrm_torchrec.preparation.readers.paths import files_of
from dlrm_torchrec.preparation.readers.tables import Form, first_with_rows, head
from dlrm_torchrec.preparation.time_windows import END_S, Shares

ACTIONS = ("action", "event", "eventtype", "eventname", "type", "behavior", "behaviour", *NAMES["rating"])

VAL_SHARE = 0.1  # but for MovieLens, whose published results hold out the last events of each user


@dataclass(frozen=True, kw_only=True)
class Config:
    input: tuple[str, ...]  # Files, folders or patterns of a log; or the folder that MovieLens unpacks to.
    output: str  # Folder to prepare, new or empty.
    positive: tuple[str, ...] = ()  # Values of the action that make an event's label 1; none for next items only.
    user: str = ""  # Column of the user; empty finds it by a usual name, like the next three.
    item: str = ""  # Column of the item.
    action: str = ""  # Column of the action, or of the rating; a log may have none.
    time: str = ""  # Column of the time: dates from 1970 on, counts since 1970, or numbers from 0 on.
    events: tuple[str, ...] = ()  # Columns of further categories of an event, such as the artist of a song.
    users: tuple[str, ...] = ()  # Columns of categories of a user, such as the country; the first event's counts.
    marks: tuple[str, ...] = ()  # Columns of categories of an event that only crosses read, such as is_organic.
    crosses: tuple[str, ...] = ()  # Features of pairs and more, with their rows: name=column,column,hour:1000000.
    separator: str = ""  # Between the fields of text, such as :: or \t; empty means that the file tells.
    columns: tuple[str, ...] = ()  # Names of the columns of text that has no header line.
    min_count: int = 1  # An item that the training events have less often is unseen.
    val_share: float | None = None  # Latest events for 'val'; 0 holds out none by time. Default: 0.1, MovieLens 0.
    test_share: float = 0.0  # Share of the events for 'test': the latest ones.
    gap_s: int = 0  # Seconds before 'val' and before 'test' whose events are no candidates.
    max_bad_share: float = 0.01  # Largest share of malformed rows; more end in an error.
    memory_gib: float = 2.0  # Memory to use, about.
    overwrite: bool = False  # Replace a folder that is already prepared.


def found(cfg: Config, paths: tuple[str, ...], form: Form) -> LogColumns:
    """The columns that are named, and those that have a usual name."""
    path = first_with_rows([file for each in paths for file in files_of(each)], form)
    names = list(head(path, form, 1))
    plain = {each.lower().translate(str.maketrans("", "", " -_")): each for each in names}
    parts = {}
    for part, usual in {**NAMES, "action": ACTIONS}.items():
        if part == "rating":
            continue
        name = getattr(cfg, part) or next((plain[each] for each in usual if each in plain), "")
        if name not in names and (name or part != "action"):
            raise ValueError(
                f"{path} must have a column of the {part}: got {names}; name it with --{part}, and those of a file "
                "without a header with --columns"
            )
        parts[part] = name
    for option in ("events", "users", "marks"):
        for name in getattr(cfg, option):
            if name not in names:
                raise ValueError(f"{path} must have the column {name!r} of --{option}: got {names}; correct its name")
    crosses = tuple(map(SizedCross.parse, cfg.crosses))
    return LogColumns(**parts, events=cfg.events, users=cfg.users, marks=cfg.marks, crosses=crosses)


def told(manifest: Manifest) -> Iterator[str]:
    """Lines about simultaneous events, if there are any, and about each window: its events, times and positives."""
    assert manifest.spec.history
    together, events = manifest.report["simultaneous"], manifest.report["events"]
    if together:
        yield (
            f"{together:,} events ({together / events:.1%}) have the time of the one before them, by the same user; "
            "such events keep the order of the log"
        )
    counted = manifest.spec.history.counted
    for name, times_s in manifest.windows.items():
        begins, ends = (each if counted else np.datetime64(each, "s") for each in times_s)
        until = "on" if times_s[1] == END_S else f"until {ends}"
        counts = manifest.report["windows"][name]
        share = f", {counts['positives'] / counts['events']:.1%} positive" if "positives" in counts else ""
        yield f"{name}: {counts['events']:,} events from {begins} {until}{share}"


def main(cfg: Config) -> None:
    paths, form, name = cfg.input, Form(separator=cfg.separator, names=cfg.columns), "events"
    kind = find_format(cfg.input[0])
    if kind:
        paths, form, name = (join(cfg.input[0], FORMATS[kind].ratings),), FORMATS[kind].form, f"movielens-{kind}"
    share = cfg.val_share if cfg.val_share is not None else 0.0 if kind else VAL_SHARE
    manifest = prepare_histories(
        paths,
        found(cfg, paths, form),
        cfg.output,
        form=form,
        name=name,
        positive=cfg.positive,
        shares=Shares(val=share, test=cfg.test_share, gap_s=cfg.gap_s),
        min_count=cfg.min_count,
        max_bad_share=cfg.max_bad_share,
        overwrite=cfg.overwrite,
        memory_bytes=int(cfg.memory_gib * 2**30),
    )
    events, users, bad = (f"{manifest.report[name]:,}" for name in ("events", "users", "rows_quarantined"))
    print(f"{cfg.output}: {events} events of {users} users; {bad} malformed rows in quarantine.tsv")
    for line in told(manifest):
        print(line)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
