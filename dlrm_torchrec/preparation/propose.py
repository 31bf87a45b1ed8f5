"""Proposes a ``DatasetSpec`` for a CSV or Parquet file, with the reason for every column.

    python -m dlrm_torchrec.preparation.propose clicks.csv --output spec.json
    python data/criteo/prepare.py table --spec spec.json --input clicks.csv --output prepared/clicks

It looks at the first rows. Each line of its output says what a column becomes and why. The spec is a small JSON file;
correct it where it is wrong.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tyro
from iopath.common.file_io import g_pathmgr
from tyro.conf import Positional

from dlrm_torchrec.preparation.readers.fields import parse_text, split_line, split_quoted_fields
from dlrm_torchrec.preparation.readers.lines import read_lines
from dlrm_torchrec.raw_values import NUMBER
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature

LABELS = ("label", "click", "clicked", "is_click", "target", "y", "conversion", "converted")
POSITIVE = {"1", "1.0", "true", "t", "yes", "y", "click", "clicked", "positive"}
CATEGORY_NAMES = ("id", "code", "type", "category", "cat", "class", "zip", "hash", "key")
LIST_SEPARATOR = "|"
FEW_CLASSES = 32  # an integer column of at most so many values may name classes
MANY_IDS = 100_000  # of more distinct values in the sample, a vocabulary would be mostly values seen once
SKEWED = 100  # a column gets a logarithm if its largest value is more than so many times its mean


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What becomes of one column: a feature, the label, or nothing."""

    name: str
    feature: DenseFeature | SparseFeature | None
    reason: str


def read_columns(path: str, separator: str, rows: int) -> dict[str, Any]:
    """About the first ``rows`` rows as Arrow arrays by column; the columns of delimited text are text."""
    if path.endswith(".parquet"):
        with g_pathmgr.open(path, "rb") as raw:
            batch = next(pq.ParquetFile(raw).iter_batches(batch_size=rows), None)
        if batch is None:
            raise ValueError(f"file {path} must have rows: got none; name another")
        return {name: _plain(values) for name, values in zip(batch.schema.names, batch.columns, strict=True)}
    pieces: list[list[Any]] = []
    header: list[str] = []
    read = 0
    for block in read_lines(path):
        lines = block.select(block.starts < block.ends)
        if not header and len(lines):
            header = [field.decode(errors="replace") for field in split_line(lines.text(0), separator) or []]
            lines = lines.select(slice(1, None))
        fields, malformed = split_quoted_fields(lines.select(slice(rows - read)), separator, len(header))
        good = pa.array(~malformed)
        pieces.append([parse_text(fields, number)[0].filter(good) for number in range(len(header))])
        read += int((~malformed).sum())
        if read >= rows:
            break
    if not read:
        raise ValueError(
            f"file {path} must have a header line and rows separated by {separator!r}: got none; correct it"
        )
    return {
        name: pa.concat_arrays(list(column)) for name, column in zip(header, zip(*pieces, strict=True), strict=True)
    }


def _plain(values: Any) -> Any:
    """The values without dictionaries and large offsets; NaN, which pandas writes for missing numbers, is missing."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_large_string(values.type):
        return values.cast(pa.string())
    if pa.types.is_floating(values.type):
        return pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    return values


def propose(name: str, columns: dict[str, Any], label: str = "") -> tuple[DatasetSpec, list[Proposal]]:
    """The spec for a file with these columns, and each column's role. Raises ValueError if none can be the label."""
    label = label or _guess_label(columns)
    if label not in columns:
        raise ValueError(f"label must be one of the columns {list(columns)}: got {label!r}; name it with --label")
    positive, reason = _positive(columns[label], label)
    proposals = [Proposal(name=label, feature=None, reason=reason)]
    proposals += [_column(each, values) for each, values in columns.items() if each != label]
    features = [proposal.feature for proposal in proposals]
    spec = DatasetSpec(
        name=name,
        label=label,
        positive_label=positive,
        dense=tuple(feature for feature in features if isinstance(feature, DenseFeature)),
        sparse=tuple(feature for feature in features if isinstance(feature, SparseFeature)),
    )
    return spec, proposals


def _guess_label(columns: dict[str, Any]) -> str:
    binary = [name for name, values in columns.items() if not _is_list(values) and len(_distinct(values)) == 2]
    named = [name for name in columns if name.lower() in LABELS]
    candidates = [name for name in named if name in binary] or binary
    if len(candidates) != 1:
        raise ValueError(
            f"label must be known: got {candidates or 'no column'} of two values among {list(columns)}; "
            "name it with --label"
        )
    return candidates[0]


def _positive(values: Any, name: str) -> tuple[str | None, str]:
    """The text that means 1 (None if the column holds 0 and 1 already), and the reason."""
    texts = sorted(str(value) for value in _distinct(values).to_pylist())
    if len(texts) != 2:
        raise ValueError(f"label {name!r} must have two values: got {texts[:5]}; name another with --label")
    if texts in (["0", "1"], ["0.0", "1.0"]) or pa.types.is_boolean(values.type):
        return None, f"label: {texts[0]} and {texts[1]}"
    known = [text for text in texts if text.strip().lower() in POSITIVE]
    if len(known) == 1:
        return known[0], f"label: {known[0]!r} means 1"
    counts = pc.value_counts(values.drop_null().cast(pa.string())).to_pylist()
    rarer = min(counts, key=lambda count: count["counts"])["values"]
    return rarer, f"label: {rarer!r}, the rarer value, is taken to mean 1"


def _column(name: str, values: Any) -> Proposal:
    missing = values.null_count / max(1, len(values))
    lists = _is_list(values)
    if not lists and pa.types.is_string(values.type):
        lists = (pc.mean(pc.match_substring(values, LIST_SEPARATOR)).as_py() or 0) > 0.01
        flat = pc.split_pattern(values, LIST_SEPARATOR).flatten() if lists else values
    else:
        flat = values.flatten() if lists else values
    if not (pa.types.is_string(flat.type) or pa.types.is_boolean(flat.type) or _numbers(flat) is not None):
        return Proposal(name=name, feature=None, reason=f"left out: {flat.type} is not supported")
    distinct = len(_distinct(flat))
    if distinct < 2:
        return Proposal(name=name, feature=None, reason=f"left out: {distinct} distinct value")
    tail = f", {missing:.0%} missing" if missing else ""
    numbers = None if lists else _numbers(values)
    if numbers is not None:
        if len(numbers) > 2 and distinct == len(numbers) and _counts_up(numbers):
            return Proposal(name=name, feature=None, reason="left out: it numbers the rows")
        category = _names_classes(name, numbers, distinct)
        if not category:
            low, high, mean = (fn(numbers).as_py() for fn in (pc.min, pc.max, pc.mean))
            skewed = low >= 0 and mean > 0 and high > SKEWED * mean
            why = f"number from {low:g} to {high:g}" + (f", over {SKEWED} times its mean: log(1 + x)" if skewed else "")
            return Proposal(name=name, feature=DenseFeature(name=name, log1p=skewed), reason=why + tail)
        tail = f", {category}{tail}"
    elif not lists and distinct == len(values) - values.null_count and distinct > FEW_CLASSES and not _is_code(name):
        return Proposal(name=name, feature=None, reason="left out: every row has another value")
    kind = "lists" if lists else "values"
    if distinct > MANY_IDS:
        rows = 1 << (2 * distinct).bit_length()
        feature = SparseFeature(name=name, rows=rows, encoding="hash", multi_hot=lists)
        return Proposal(name=name, feature=feature, reason=f"{kind}, hashed: {distinct:,} distinct in the sample{tail}")
    feature = SparseFeature(name=name, rows=0, encoding="vocab", multi_hot=lists)
    return Proposal(name=name, feature=feature, reason=f"{kind}, vocabulary: {distinct:,} distinct{tail}")


def _numbers(values: Any) -> Any:
    """The values as numbers, without missing ones; None if they are not numbers."""
    present = values.drop_null()
    if pa.types.is_string(present.type):
        return present.cast(pa.float64()) if pc.all(pc.match_substring_regex(present, NUMBER)).as_py() else None
    if pa.types.is_integer(present.type) or pa.types.is_floating(present.type):
        return present
    return None


def _names_classes(name: str, numbers: Any, distinct: int) -> str:
    """The reason why whole numbers are taken as names of classes; empty if they count or measure."""
    whole = pa.types.is_integer(numbers.type) or pc.all(pc.equal(pc.floor(numbers), numbers)).as_py()
    if not whole:
        return ""
    if _is_code(name):
        return "whole numbers with the name of a code"
    return "" if distinct > FEW_CLASSES else f"at most {FEW_CLASSES} whole numbers"


def _is_code(name: str) -> bool:
    """Whether the name of a column is that of a code or a category."""
    words = name.lower().replace("-", "_").split("_")
    return any(word.startswith(CATEGORY_NAMES) or word.endswith("id") for word in words)


def _counts_up(numbers: Any) -> bool:
    return bool(pc.all(pc.equal(pc.subtract(numbers[1:], numbers[:-1]), 1)).as_py())


def _distinct(values: Any) -> Any:
    return pc.unique(values.drop_null())


def _is_list(values: Any) -> bool:
    return bool(pa.types.is_list(values.type) or pa.types.is_large_list(values.type))


def main(
    file: Positional[str],
    *,
    output: str = "",
    label: str = "",
    separator: str = ",",
    rows: int = 200_000,
    name: str = "",
) -> None:
    """Print what each column of a file may become, and write the spec.

    Args:
        file: .parquet, or delimited text with a header line, plain or gzip
        output: JSON file to write; by default none is written
        label: column to predict; needed only if it cannot be guessed
        separator: separator of text, one character
        rows: number of first rows to look at
        name: name of the data set; by default the name of the file
    """
    spec, proposals = propose(name or file.split("/")[-1].split(".")[0], read_columns(file, separator, rows), label)
    width = max(len(proposal.name) for proposal in proposals)
    for proposal in proposals:
        print(f"{proposal.name:{width}}  {proposal.reason}")
    if output:
        with g_pathmgr.open(output, "w") as stream:
            json.dump(spec.to_json(), stream, indent=1)
        print(f"{output}: {len(spec.dense)} dense and {len(spec.sparse)} sparse features; prepare with --spec {output}")


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
