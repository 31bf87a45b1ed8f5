"""The names of tables: among a model's parameters, and so in optimizers and checkpoints, and for people."""

from __future__ import annotations

import re
from urllib.parse import unquote

# of pooled vectors, and of those of single ids; no other module of a model may be called so
_TABLE = re.compile(r"(?:^|\.)(?:embedding_bags|embeddings)\.(?P<table>[^./]+)\.weight(?=$|/)")


def table_of(name: str) -> str | None:
    """The table that a parameter with this ``name`` belongs to, or a moment of it; None when it is no table's.

    >>> table_of("model.bags.embedding_bags.t_item.weight"), table_of("model.over_arch.0.weight")
    ('t_item', None)
    >>> table_of("ids.embeddings.t_item.weight/t_item.momentum1")
    't_item'
    """
    found = _TABLE.search(name)
    return found["table"] if found else None


def shown_name(table: str) -> str:
    """The name of a table with its column's name as it was written, for people; as it is, if that has no printed form.

    >>> shown_name("t_Song%20Title"), shown_name("t_%1B")
    ('t_Song Title', 't_%1B')
    """
    name = unquote(table)
    return name if name.isprintable() else table
