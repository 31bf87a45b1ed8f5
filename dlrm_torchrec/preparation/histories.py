"""Turns logs of events, a row for each, into a prepared folder of histories, a row for each user.

First the events are prepared as any other rows: streaming, with vocabularies and a quarantine, in a folder beside the
output. Then they are gathered by user. Memory is bounded for any number of events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow.parquet as pq
from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.prepared.files import NewFile, chunks, join, remove, write_json
from dlrm_torchrec.datasets.prepared.manifest import NAME, DataFile, Manifest, Split
from dlrm_torchrec.datasets.sequences.stored import USERS
from dlrm_torchrec.preparation.crosses import SizedCross
from dlrm_torchrec.preparation.passes.finish import UnfitRowsError
from dlrm_torchrec.preparation.passes.gather import event_times, gather
from dlrm_torchrec.preparation.passes.seen import count_until, keep_counted
from dlrm_torchrec.preparation.prepare import MEMORY_BYTES, Source, prepare
from dlrm_torchrec.preparation.readers.events import LABEL, MOST_MICROS, EventColumns
from dlrm_torchrec.preparation.readers.paths import files_of
from dlrm_torchrec.preparation.readers.tables import Form, first_with_rows, head, is_blank, table_reader
from dlrm_torchrec.preparation.splits import Whole
from dlrm_torchrec.preparation.time_windows import Shares, check_windows, count_windows, find_windows
from dlrm_torchrec.preparation.vocabularies.vocabulary import FIRST
from dlrm_torchrec.preparation.work import output_folder
from dlrm_torchrec.preparation.work.recorded_work import FOLDER
from dlrm_torchrec.raw_values import TextForm, UnfitTypeError, numbers, times
from dlrm_torchrec.schema import MISSING_MARKERS, DatasetSpec, History, SparseFeature, vocabulary_path
from dlrm_torchrec.sequence_schema import ACTION, HOUR, TIME, Mark

_PROBED_ROWS = 1_000  # of a log, by which the kind of its times is told
_MOST_ACTIONS = 255
_OWN_NAMES = (TIME, ACTION, LABEL, HOUR)  # of lists in prepared files, of the label, and of a part of crosses
_FORM = TextForm(missing=MISSING_MARKERS, decimal=".", thousands="")


@dataclass(frozen=True, kw_only=True)
class LogColumns:
    """The raw columns of a log of events."""

    user: str
    item: str
    time: str
    action: str = ""  # empty means that all events are alike
    events: tuple[str, ...] = ()  # further categories of an event
    users: tuple[str, ...] = ()  # categories of a user; that of the first event counts
    marks: tuple[str, ...] = ()  # categories of an event that have no table, because only crosses read them
    crosses: tuple[SizedCross, ...] = ()  # of the columns above but for the action, and of the hour of the time

    @property
    def needed(self) -> tuple[str, ...]:
        """Those without which a row is no event."""
        return (self.user, self.item, self.time, *([self.action] if self.action else []))

    @property
    def categories(self) -> list[str]:
        """All but the action and the time, in the order of the features."""
        return [self.user, *self.users, self.item, *self.events, *self.marks]

    def history(
        self,
        features: Mapping[str, SparseFeature],
        actions: tuple[str, ...],
        positive: tuple[str, ...] = (),
        *,
        counted: bool = False,
    ) -> History:
        """What the rows of the prepared folder are, by its features. Raises ValueError for a cross of other columns."""
        crosses = tuple(each.cross for each in self.crosses)
        history = History(
            events=(self.item, *self.events), actions=actions, positive=positive, crosses=crosses, counted=counted,
            user=self.user,
            marks=tuple(
                Mark(name=name, rows=features[name].rows, encoding="vocab", vocabulary=features[name].vocabulary)
                for name in self.marks
            ),
        )  # fmt: skip
        history.check([*(name for name in self.categories if name not in self.marks), *history.cross_names])
        return history


def prepare_histories(
    paths: Sequence[str],
    columns: LogColumns,
    output: str,
    *,
    form: Form,
    name: str,
    positive: tuple[str, ...],
    shares: Shares,
    min_count: int = 1,
    max_bad_share: float = 0.01,
    overwrite: bool = False,
    memory_bytes: int = MEMORY_BYTES,
) -> Manifest:
    """The manifest of ``output``, which then holds the histories of all users in the logs ``paths``.

    Users, items and all other categories become vocabularies over the events before the end of the window for training,
    so that evaluation meets unknown values as new data do; actions over all events, and without windows everything.
    Times are dates from 1970 on, counts since 1970, or numbers from 0 on, told by the first rows. Rows without a user,
    an item, an action or a time are malformed; any other category that is missing has an id of its own.

    Raises ValueError and OSError as ``prepare`` does, and ValueError if an action of ``positive`` does not occur, if no
    user has several events, or if a window has none. After a ValueError about the events, the folder beside the output
    is gone, but for the malformed rows that the error names.

    Args:
        paths: files, folders or patterns
        columns: the raw columns
        output: the folder to prepare
        form: of text
        name: of the data
        positive: the values of the action that make the label 1
        shares: of the windows
        min_count: an item that these events have less often is unseen
        max_bad_share: the largest share of malformed rows
        overwrite: whether to replace a folder that is prepared already
        memory_bytes: memory to use, about
    """
    command = {"columns": repr(columns), "positive": list(positive), "shares": repr(shares), "min_count": min_count}
    output_folder.check(output, command, overwrite=overwrite)
    files = [file for path in paths for file in files_of(path) if not is_blank(file)]
    spec = _spec_of_events(columns, name, min_count)
    if positive and not columns.action:
        raise ValueError(
            f"positive actions must stand in a column of the action: got {list(positive)} and no such column; name it "
            "with --action"
        )
    wanted = EventColumns(
        spec=spec,
        time=columns.time,
        counted=_counted(first_with_rows(files, form), form, columns.time),
        needed=columns.needed,
    )
    sources = [Source(path=f, reader=table_reader(f, wanted, form), assignment=Whole("train")) for f in files]
    beside = f"{output.rstrip('/')}.events"
    try:
        events = prepare(
            spec, sources, beside, one_class={"train"}, max_bad_share=max_bad_share, memory_bytes=memory_bytes,
            overwrite=overwrite or g_pathmgr.exists(join(beside, NAME)),
        )  # fmt: skip
    except UnfitRowsError:
        output_folder.keep_reports(beside)
        raise
    try:  # before anything is begun that must be continued
        actions = _actions(events, beside, columns, positive)
        windows = _windows(events, beside, columns, shares)
        counts = count_windows(events, beside, windows, [FIRST + actions.index(each) for each in positive])
        check_windows(counts, shares)
    except ValueError:
        remove(beside)
        raise
    output_folder.begin(output, command)
    features = {feature.name: feature for feature in events.spec.sparse if feature.name in columns.categories}
    new_ids = {}
    if windows:
        for feature, seen in count_until(events, beside, list(features), windows["train"][1]).items():
            features[feature], new_ids[feature] = keep_counted(features[feature], seen, beside, output)
    else:
        for each in features.values():
            _copy(beside, output, vocabulary_path(each))
    history = columns.history(features, actions, positive, counted=wanted.counted)
    spec = _spec_of_histories(events.spec, features, columns, history)
    gathered = gather(events, beside, columns.user, spec, new_ids=new_ids, output=output, memory_bytes=memory_bytes)
    report = {name: found for name, found in events.report.items() if name != "splits"}  # there are windows in place
    report |= {
        "events": gathered.events,
        "users": sum(rows for _, rows in gathered.files),
        "simultaneous": gathered.simultaneous,
        "windows": counts,
    }
    _copy(beside, output, output_folder.QUARANTINE)
    write_json(output, output_folder.REPORT, report, indent=1)
    # the ids that a sample of one candidate would have, if its history were all that the user did before
    tokens = gathered.earlier + 1
    sparse = tuple(replace(f, pooling_factor=tokens) if f.multi_hot else f for f in spec.sparse)
    stored = tuple(DataFile(path=file.path, rows=rows, sha256=file.sha256) for file, rows in gathered.files)
    manifest = Manifest(
        spec=replace(spec, sparse=sparse),
        splits={USERS: Split(files=stored)},
        sources=events.sources,
        report=report,
        windows=windows,
    )
    manifest.save(output)
    remove(join(output, FOLDER))
    remove(beside)
    return manifest


def _spec_of_events(columns: LogColumns, name: str, min_count: int) -> DatasetSpec:
    """The spec of the rows of a log."""
    categories = columns.categories
    unfit = {each for each in categories if categories.count(each) > 1} | ({*_OWN_NAMES} & {*categories})
    if unfit:
        raise ValueError(
            f"columns of a log must be distinct, and categories not have the names {list(_OWN_NAMES)}, which a history "
            f"has itself: got {sorted(unfit)}; rename or leave them out"
        )
    features = [
        SparseFeature(name=each, rows=0, encoding="vocab", min_count=min_count if each == columns.item else 1)
        for each in categories
    ]
    columns.history({each.name: each for each in features}, ("event",))  # refuses crosses before any row is read
    if columns.action:
        features.append(SparseFeature(name=ACTION, column=columns.action, rows=0, encoding="vocab"))
    features.append(SparseFeature(name=TIME, column=columns.time, rows=MOST_MICROS))
    return DatasetSpec(name=name, label=LABEL, dense=(), sparse=tuple(features))


def _actions(events: Manifest, folder: str, columns: LogColumns, positive: tuple[str, ...]) -> tuple[str, ...]:
    """All actions of the prepared events in ``folder``. Raises ValueError unless ``positive`` are among them."""
    actions: tuple[str, ...] = ("event",)
    if columns.action:
        action = next(feature for feature in events.spec.sparse if feature.name == ACTION)
        with g_pathmgr.open(join(folder, vocabulary_path(action)), "rb") as file:
            actions = tuple(str(value) for value in pq.read_table(file)["value"].to_pylist())
    if len(actions) > _MOST_ACTIONS:
        raise ValueError(
            f"column {columns.action!r} must have at most {_MOST_ACTIONS} actions: got {len(actions)}; name the column "
            "of the action"
        )
    missing = [action for action in positive if action not in actions]
    if missing:
        raise ValueError(f"positive actions must occur in the log: got {missing[0]!r}; name some of {list(actions)}")
    return actions


def _spec_of_histories(
    events: DatasetSpec, features: Mapping[str, SparseFeature], columns: LogColumns, history: History
) -> DatasetSpec:
    return replace(
        events,
        label=history.positive[0] if len(history.positive) == 1 else "positive",
        sparse=(
            *(features[name] for name in (columns.user, *columns.users)),
            *(replace(features[name], multi_hot=True) for name in history.events),
            *(each.feature() for each in columns.crosses),
        ),
        history=history,
    )


def _windows(events: Manifest, folder: str, columns: LogColumns, shares: Shares) -> dict[str, tuple[int, int]]:
    """The windows of the prepared events in ``folder``. Raises ValueError if no user has several events."""
    users = next(feature for feature in events.spec.sparse if feature.name == columns.user).rows - FIRST
    if events.splits["train"].rows == users:
        raise ValueError(
            f"users must have several events, which are their histories: got one of each of {users:,} users in column "
            f"{columns.user!r}; name another column of the user"
        )
    return find_windows(event_times(events, folder), shares) if shares.val else {}


def _counted(path: str, form: Form, time: str) -> bool:
    """Whether the times of a log are numbers of which most are no times since 1970, so that only their order counts."""
    values = head(path, form, _PROBED_ROWS)
    if time not in values:
        raise ValueError(f"{path} must have the column of times {time!r}: got {list(values)}; name it")
    try:
        bad_times, bad_numbers = (read(values[time], _FORM)[1] for read in (times, numbers))
    except UnfitTypeError:  # dates and times of Parquet are no numbers; reading refuses all other types
        return False
    return bool((bad_times & ~bad_numbers).mean() > 0.5)


def _copy(source: str, target: str, path: str) -> None:
    with NewFile(target, path) as file:
        for chunk in chunks(join(source, path)):
            file.write(chunk)
