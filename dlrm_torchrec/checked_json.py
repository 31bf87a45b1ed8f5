"""Dataclasses from JSON that people write: every mistake is named with its field and with what is allowed there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")

_NAMES = {str: "a text", bool: "true or false", int: "a whole number", float: "a finite number", NoneType: "null"}


def record(kind: type[Record], data: Any, what: str) -> Record:
    """The dataclass ``kind`` with the fields of ``data``; ``what`` names it in errors.

    Raises ValueError when a field is unknown, missing, or of another type than its annotation.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]  # mypy wants an instance
    if not isinstance(data, Mapping):
        raise ValueError(f"{what} must be an object with the fields {list(fields)}: got {data!r}; write one")
    unknown = [name for name in data if name not in fields]
    if unknown:
        raise ValueError(f"fields of {what} must be among {list(fields)}: got {unknown[0]!r}; remove or rename it")
    absent = [
        name
        for name, field in fields.items()
        if name not in data and field.default is field.default_factory is dataclasses.MISSING
    ]
    if absent:
        raise ValueError(f"{what} must have the field {absent[0]!r}: got {list(data)}; add it")
    hints = get_type_hints(kind)
    return kind(**{name: _value(hints[name], value, f"{name} of {what}") for name, value in data.items()})


def _value(kind: Any, value: Any, what: str) -> Any:
    """The value as its annotated type, with lists as tuples."""
    options = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    for option in options:
        if get_origin(option) is tuple and isinstance(value, (list, tuple)):
            element = get_args(option)[0]
            return tuple(_value(element, each, f"entry {i} of {what}") for i, each in enumerate(value))
        if dataclasses.is_dataclass(option) and not (value is None and NoneType in options):
            assert isinstance(option, type)
            return record(option, value, f"{what} {_name_of(value)}".strip())
        if _fits(option, value):
            return float(value) if option is float else value
    allowed = " or ".join(_described(option) for option in options)
    raise ValueError(f"{what} must be {allowed}: got {value!r}; correct it")


def _fits(kind: Any, value: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return type(value) is kind


def _described(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {list(get_args(kind))}"
    return "a list" if get_origin(kind) is tuple else _NAMES[kind]


def _name_of(value: Any) -> str:
    """How a record is told from its neighbours."""
    return repr(value["name"]) if isinstance(value, Mapping) and isinstance(value.get("name"), str) else ""
