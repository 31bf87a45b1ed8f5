"""Loops over bytes and hash tables as machine code, compiled once and then kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(*arguments: Any) -> Callable[[F], F]:
    """A decorator: the function as machine code for arguments of these numba types, ready when it is defined.

    The code is kept beside the source file, or in the user's cache folder, for the next process. Where neither can be
    written, every process compiles anew.
    """

    def decorate(function: F) -> F:
        try:
            return cast(F, numba.njit([arguments], cache=True, nogil=True)(function))
        except RuntimeError:  # numba found no folder for its cache
            return cast(F, numba.njit([arguments], nogil=True)(function))

    return decorate


def read_only(kind: Any) -> Any:
    """The numba type of a one-dimensional array that is only read, whether or not it could be written."""
    return numba.types.Array(kind, 1, "C", readonly=True)
