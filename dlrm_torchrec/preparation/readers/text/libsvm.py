"""Splits lines of libsvm and libfm, ``label index:value index:value``, into three columns."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dlrm_torchrec.preparation.readers.lines import Lines
from dlrm_torchrec.preparation.readers.text.layout import Parsed

NAMES = ("label", "features", "values")
_LABEL = r"[^\s,;|]+"  # no separator, or rows that end in a time, such as 2024-03-05 17:30, would be taken for pairs
_ROW = re.compile(_LABEL + r"([ \t]+[0-9]+:[^\s:]+)*[ \t]*(#.*)?")
_PAIR = re.compile(rf"^{_LABEL}[ \t]+[0-9]+:[^\s:]+", re.MULTILINE)


def is_libsvm(sample: str) -> bool:
    """Whether most lines of a text are such rows, and some have an index and a value."""
    rows = [row for row in sample.split("\n") if row]
    return _PAIR.search(sample) is not None and 2 * sum(_ROW.fullmatch(row) is not None for row in rows) > len(rows)


def parse_libsvm(lines: Lines, names: tuple[str, ...]) -> Parsed:
    """The rows of some lines: the label as text, and lists of the indices and of the values as text."""
    texts = pa.array([lines.text(i).decode("utf-8", "backslashreplace") for i in range(len(lines))], pa.string())
    texts = pc.utf8_trim_whitespace(pc.replace_substring_regex(texts, "#.*", ""))
    there = pc.not_equal(texts, "")  # neither blank nor a comment
    kept = np.flatnonzero(there.to_numpy(zero_copy_only=False))
    tokens = pc.utf8_split_whitespace(texts.filter(there))
    pairs = pc.list_slice(tokens, 1)
    parts = pc.extract_regex(pairs.flatten(), "^(?P<index>[0-9]+):(?P<value>[^:]+)$")
    offsets = np.concatenate([[0], np.cumsum(pc.list_value_length(pairs).to_numpy())]).astype(np.int32)
    bad_before = np.concatenate([[0], np.cumsum(parts.is_null().to_numpy(zero_copy_only=False))])
    bad = bad_before[offsets[1:]] > bad_before[offsets[:-1]]
    good = pa.array(~bad)
    columns = [
        pc.list_element(tokens, 0),
        *(pa.ListArray.from_arrays(pa.array(offsets), parts.field(name)) for name in ("index", "value")),
    ]
    rejected = [(int(i), int(i) + 1, "not 'label index:value index:value'") for i in kept[bad]]
    first = kept[~bad]
    named = {name: column.filter(good) for name, column in zip(names, columns, strict=True)}
    return Parsed(named, first, first + 1, rejected)
