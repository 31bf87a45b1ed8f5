"""Reads the columns of a JSON document from an untrusted client; the document has rows or columns."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from starlette.exceptions import HTTPException

FORMS = '{"rows": [{feature: value, ...}, ...]} or {"columns": {feature: [value, ...], ...}}'


def read_json(body: bytes, max_rows: int) -> dict[str, list[Any]]:
    """Columns by name; HTTPException 400 for other bodies, 413 for too many rows, 422 for any other document."""
    try:
        document = json.loads(body, parse_constant=_no_number)
    except RecursionError:
        raise HTTPException(400, "body must be JSON with few nested levels: got hundreds") from None
    except ValueError as error:
        raise HTTPException(400, f"body must be JSON: got {error}") from error
    match document:
        case {"rows": list(rows), **others} if rows and not others:
            _check_length(rows, max_rows)
            return _transposed(rows)
        case {"columns": dict(columns), **others} if not others:
            for column in columns.values():
                _check_length(column, max_rows)
            return columns
    raise HTTPException(422, f"body must be {FORMS}: got another document")


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant}, which JSON does not have; write null for a missing value")


def _check_length(values: Any, max_rows: int) -> None:
    if isinstance(values, list) and len(values) > max_rows:
        raise HTTPException(413, f"rows must be at most {max_rows}: got {len(values)}; split the request")


def _transposed(rows: list[Any]) -> dict[str, list[Any]]:
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or row.keys() != rows[0].keys():
            raise HTTPException(
                422, f"rows must be objects that all name the same features: got something else in row {number}"
            )
    return {name: [row[name] for row in rows] for name in rows[0]}
