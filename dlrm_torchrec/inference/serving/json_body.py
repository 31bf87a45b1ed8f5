"""Reads the columns of a JSON document from an untrusted client; the document has rows or columns."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from starlette.exceptions import HTTPException

from dlrm_torchrec.inference.serving.json_shape import check_shape
from dlrm_torchrec.inference.serving.limits import ServingConfig

MAX_NUMBER_BYTES = 64  # the time to read a number grows with the square of its length
FORMS = '{"rows": [{feature: value, ...}, ...]} or {"columns": {feature: [value, ...], ...}}'


def read_json(body: bytes, limits: ServingConfig) -> dict[str, list[Any]]:
    """Columns by name; HTTPException 400 for other bodies, 413 beyond a limit, 422 for any other document."""
    try:
        if len(body) > limits.max_text_bytes:  # a shorter one cannot take long
            check_shape(body, limits)
        text = body.decode("utf-8-sig")  # in other encodings, bytes are not what was counted
        document = json.loads(text, parse_constant=_no_number, parse_int=_integer, parse_float=_fraction)
    except RecursionError:
        raise HTTPException(400, "body must be JSON with few nested levels: got hundreds") from None
    except ValueError as error:
        raise HTTPException(400, f"body must be JSON: got {error}") from error
    match document:
        case {"rows": list(rows), **others} if not others:
            if not rows:
                raise HTTPException(422, "a request must have rows: got none")
            _check_length(rows, limits.max_rows)
            return _transposed(rows)
        case {"columns": dict(columns), **others} if not others:
            for column in columns.values():
                _check_length(column, limits.max_rows)
            return columns
    raise HTTPException(422, f"body must be {FORMS}: got another document")


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant}, which JSON does not have; write null for a missing value")


# Python lets other threads go on at a call of a function such as these two, but not inside its own reader of numbers.
def _integer(digits: str) -> int:
    return int(_short(digits))


def _fraction(digits: str) -> float:
    return float(_short(digits))


def _short(digits: str) -> str:
    if len(digits) > MAX_NUMBER_BYTES:
        raise ValueError(f"a number of {len(digits)} bytes, and {MAX_NUMBER_BYTES} is the most; send it as a text")
    return digits


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
