"""Files of frequent ids, for hot_cold tables whose ids are not in order of frequency, such as hashed ones.

A safetensors file holds the ids (H,) int64 of each table by its name, the most frequent first.
``python -m dlrm_torchrec.datasets.profile`` counts and writes them.
"""

from __future__ import annotations

import os
from hashlib import sha256

import torch
from safetensors import SafetensorError, safe_open


def frequent_ids(path: str, table: str, *, rows: int, count: int) -> torch.Tensor:
    """The ``count`` most frequent ids of a table, of which the file may list fewer: ids 0, 1, ... fill the list then.

    Raises ValueError when the file has no ids of the table, or ids that it does not have.
    """
    try:
        with safe_open(path, framework="pt") as file:
            ids: torch.Tensor = file.get_tensor(table)[:count]
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"frequent must be a file with ids of table {table!r}: got {path!r}: {error}; write it with "
            "python -m dlrm_torchrec.datasets.profile"
        ) from error
    if ids.ndim != 1 or ids.dtype != torch.int64 or (len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < rows):
        raise ValueError(
            f"frequent ids of table {table!r} must be int64 in [0, {rows}): got {ids.dtype} of shape "
            f"{tuple(ids.shape)} in {path}; count them again for this data set"
        )
    if len(ids) < count:
        others = torch.arange(count)
        ids = torch.cat([ids, others[~torch.isin(others, ids)]])[:count]
    return ids


def file_digest(path: str) -> str:
    """What tells one file from another: 16 hexadecimal digits of SHA-256, or the path if there is no file."""
    if not os.path.exists(path):
        return path
    with open(path, "rb") as file:
        return sha256(file.read()).hexdigest()[:16]
