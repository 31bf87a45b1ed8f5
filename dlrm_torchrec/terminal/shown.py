"""Text of others as it is safe to show on a terminal."""

from __future__ import annotations


def shown(text: str) -> str:
    r"""The text with control characters, and those that change the direction of writing, as escapes such as \x1b.

    >>> print(shown("\x1b]0;title\x07 caf\u00e9 and\n\u202enext"))
    \x1b]0;title\x07 café and
    \u202enext
    """
    return "".join(
        each if each in " \t\n" or each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )
