"""Loops over bytes and hash tables as machine code, which is compiled once and then kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(*arguments: Any, **options: Any) -> Callable[[F], F]:
    """A decorator that compiles a function for arguments of these numba types as soon as it is defined.

    Without types, it compiles at the first call, for the types of that call. ``options`` are numba's.

    The machine code is kept next to the source file, or in the user's cache folder, for the next process. If neither
    folder is writable, every process compiles the function again.
    """

    types: Any = [arguments] if arguments else None

    def decorate(function: F) -> F:
        try:
            return cast(F, numba.njit(types, cache=True, nogil=True, **options)(function))
        except RuntimeError:  # numba found no folder for its cache
            return cast(F, numba.njit(types, nogil=True, **options)(function))

    return decorate


def read_only(kind: Any) -> Any:
    """The numba type of a one-dimensional array that the function only reads; a writable array fits, too."""
    return numba.types.Array(kind, 1, "C", readonly=True)
