"""``checkpoint.json``, whose presence makes a folder a checkpoint: the progress, and the checksums of all files.

Its last line is the CRC-32 of all lines above, so a marker that was not written whole is told from one that was.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.train.checkpoints.checksums import BLOCK_BYTES, FileSum
from dlrm_torchrec.train.checkpoints.identity import first_difference
from dlrm_torchrec.train.checkpoints.progress import Progress

FORMAT = 4
WITHOUT_CHECKSUMS = 3  # the format before it, which is read but cannot be verified
MARKER = "checkpoint.json"


class DamagedError(ValueError):
    """A marker is not what was written."""


@dataclasses.dataclass(frozen=True)
class Marker:
    """What a checkpoint says of itself; ``sums`` is None in a checkpoint of the format without checksums."""

    progress: Progress
    sums: dict[str, FileSum] | None


def marker_text(progress: Progress, sums: Mapping[str, FileSum]) -> bytes:
    """The content of ``checkpoint.json``."""
    files = {name: dataclasses.asdict(each) for name, each in sorted(sums.items())}
    content = {"format": FORMAT, "torch": torch.__version__, **dataclasses.asdict(progress)}
    content |= {"block_bytes": BLOCK_BYTES, "files": files}
    above = json.dumps(content, indent=1).encode()[:-2] + b",\n"
    return above + _seal(above)


def read_marker(path: str) -> Marker:
    """The marker of the checkpoint in folder ``path``.

    Raises DamagedError when it is not what was written, and ValueError when it is of a format that this code does not
    read.
    """
    try:
        with g_pathmgr.open(f"{path}/{MARKER}", "rb") as stream:
            text = stream.read()
        data = json.loads(text)
    except OSError as error:
        raise DamagedError(f"{MARKER} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise DamagedError(f"{MARKER} is not whole") from None
    if not isinstance(data, dict):
        raise DamagedError(f"{MARKER} is not whole")
    above = text[: max(0, text.rfind(b' "checksum": "'))]
    sealed, form = text == above + _seal(above), data.get("format")
    if not sealed and ("checksum" in data or form == FORMAT):
        raise DamagedError(f"{MARKER} differs from its checksum")
    if form != (FORMAT if sealed else WITHOUT_CHECKSUMS):
        raise ValueError(
            f"checkpoint {path} must have format {FORMAT} or {WITHOUT_CHECKSUMS}: got {form!r}; "
            "use the version of dlrm-torchrec that wrote it, or another run folder"
        )
    fields = {field.name for field in dataclasses.fields(Progress)}
    progress = Progress(**{"identity": None, "lanes": 0} | {name: data[name] for name in fields & data.keys()})
    counts = (progress.step, progress.lanes - 1) if isinstance(progress.lanes, int) else (-1,)
    if not isinstance(progress.identity, dict) or not all(isinstance(each, int) and each >= 0 for each in counts):
        raise DamagedError(f"{MARKER} holds no progress of a run")
    if not sealed:
        return Marker(progress, None)
    return Marker(progress, {name: FileSum(**each) for name, each in data["files"].items()})


def read_progress(path: str, identity: dict[str, Any] | None = None) -> Progress:
    """The JSON half of a checkpoint; ValueError when this code, or a run of ``identity``, cannot use it."""
    progress = read_marker(path).progress
    difference = None if identity is None else first_difference(progress.identity, identity)
    if difference is not None:
        name, saved, wanted = difference
        raise ValueError(
            f"{name} must be what the checkpoint {path} was trained with, {saved}: got {wanted}; "
            f"{_advice(name)}, or start anew in another --run-dir"
        )
    return progress


def _seal(above: bytes) -> bytes:
    return b' "checksum": "%08x"\n}\n' % zlib.crc32(above)


def _advice(name: str) -> str:
    if name == "data_digest":
        return "these are other rows, so evaluate the run on them (recipes/evaluate.py --data)"
    if name.startswith("spec."):
        return "prepare the data with the vocabularies and scales of the run's own data"
    return "restore it"
