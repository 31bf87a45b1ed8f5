"""The records of a run, metrics.jsonl: a JSON object on each line, with its ``step`` and numbers by name.

Every record is appended by one write, so that a kill leaves at most one torn line, the last. Whatever else a disk, an
editor or another program leaves in the file is set aside when a run resumes, and skipped by all other readers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.train.output.whole import write_whole

FILE, SET_ASIDE = "metrics.jsonl", "metrics.unreadable"
Record = dict[str, Any]  # "step", an int from 0, and numbers by name


class Records(NamedTuple):
    """The records of a file in its order, each with its line, and the lines that are none."""

    records: list[Record]
    lines: list[bytes]  # of the records, each with its end
    unreadable: list[bytes]


def read_records(folder: str) -> Records:
    """The records of the run in ``folder``; none if it has written none. Lines that are no records raise nothing."""
    return _parsed(_content(folder.rstrip("/")))


def append_record(folder: str, step: int, values: Mapping[str, float]) -> None:
    """Write one more line, by a single write."""
    line = (json.dumps({"step": step, **values}) + "\n").encode()
    with g_pathmgr.open(f"{folder}/{FILE}", "ab") as stream:
        stream.write(line)


def keep_records(folder: str, step: int) -> str:
    """Remove the records after ``step``, and set aside what is none; a warning of what was set aside, or nothing.

    A kill in between loses nothing: the file is replaced as a whole, after the lines that it loses are safe.
    """
    content = _content(folder)
    found = _parsed(content)
    kept = [line for record, line in zip(found.records, found.lines, strict=True) if record["step"] <= step]
    aside = f"{folder}/{SET_ASIDE}"
    if found.unreadable:
        with g_pathmgr.open(aside, "ab") as stream:
            stream.write(b"\n".join(found.unreadable) + b"\n")
    if b"".join(kept) != content or not content:
        write_whole(f"{folder}/{FILE}", b"".join(kept))
    if not found.unreadable:
        return ""
    lines, are = ("a line", "it is") if len(found.unreadable) == 1 else (f"{len(found.unreadable)} lines", "they are")
    return f"warning: {folder}/{FILE} had {lines} that no run wrote whole; {are} now in {aside}"


def _content(folder: str) -> bytes:
    path = f"{folder}/{FILE}"
    if not g_pathmgr.exists(path):
        return b""
    with g_pathmgr.open(path, "rb") as stream:
        content: bytes = stream.read()
    return content


def _parsed(content: bytes) -> Records:
    found = Records([], [], [])
    lines = content.split(b"\n")
    for line in lines if lines[-1] else lines[:-1]:  # nothing follows the end of the last line
        record = _record(line)
        if record is None:
            found.unreadable.append(line)
        else:
            found.records.append(record)
            found.lines.append(line + b"\n")
    return found


def _record(line: bytes) -> Record | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or type(value.get("step")) is not int or value["step"] < 0:
        return None
    return value if all(type(each) in (int, float) for each in value.values()) else None
