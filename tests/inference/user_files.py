"""Raw rows of users as the files that ``dlrm-recipes predict`` reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq


def write_users(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write Parquet, JSON lines or CSV, as the name of ``path`` ends; the values of a list in CSV stand between '|'."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        texts = [{k: "|".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in row.items()} for row in rows]
        pacsv.write_csv(pa.Table.from_pylist(texts), path)
